#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "lapidary/checkpoint/files.h"
#include "lapidary/checkpoint/safetensors.h"

// How safetensors files are put together; the writers of one file and of a directory share it.
namespace lapidary {

// Error, with every mistake, for what the format can't hold: names that are given twice or
// reserved, no shape, no data, element types without a counterpart, a part outside its tensor.
void check_sources(const std::string& where, const std::vector<TensorSource>& tensors);

// Where everything lies in a file. It depends on names, shapes, target types and their order alone,
// so that every rank computes the same one.
struct FileLayout {
  struct Place {
    const TensorSource* tensor;
    int64_t offset;  // of its first byte in the file
  };
  std::string header;  // the first bytes of the file
  std::vector<Place> places;
  int64_t bytes = 0;  // of the whole file
};
// Wider element types first, otherwise in the given order. The tensors must outlive the layout.
FileLayout lay_out(const std::string& where, const std::vector<const TensorSource*>& tensors,
                   const std::map<std::string, std::string>& metadata);

// Writes the elements that are this rank's into a file that has its full length. Needs memory for
// one piece of kFillElements at a time, before and after conversion.
void write_part(const Descriptor& file, const std::string& path, const FileLayout::Place& place);

}  // namespace lapidary
