#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "lapidary/data/collate.h"

namespace lapidary {

// Makes the batch of the samples with these indices; called by the loader's thread.
using BatchMaker = std::function<Batch(std::span<const int64_t>)>;

// Collates samples out of a list.
BatchMaker collate_from(std::shared_ptr<const std::vector<Sample>> samples,
                        const CollateOptions& options);

struct LoaderOptions {
  int64_t batch_size = 1;  // samples of a micro-batch
  uint64_t seed = 0;
  bool shuffle = true;     // anew in every epoch
  bool drop_last = false;  // leave out a last, smaller micro-batch
  int64_t rank = 0;
  int64_t world = 1;
  int64_t prefetch = 2;  // micro-batches made ahead
};

// Where the next micro-batch comes from. `position` counts micro-batches of the epoch over all
// ranks, so that a state is good for any number of ranks.
struct LoaderState {
  int64_t epoch = 0;
  int64_t position = 0;
};

// Deals micro-batches. The order of an epoch depends on seed and epoch alone; the ranks take its
// micro-batches in turn, all ranks equally many: step s of N ranks with a micro-batches each takes
// those from s a N up to (s + 1) a N, as one rank with a N of them would. Where the last turn isn't
// full, the ranks that would go empty get a micro-batch of padding (without_targets()).
// Batches are made by one thread ahead of the caller. One thread at a time may call the methods.
class DataLoader {
 public:
  // Throws Error for options out of range or when an epoch would have no batch.
  DataLoader(int64_t sample_count, BatchMaker make_batch, const LoaderOptions& options);
  ~DataLoader();
  DataLoader(const DataLoader&) = delete;
  DataLoader& operator=(const DataLoader&) = delete;

  // The next micro-batch of this rank; nullopt once at the end of every epoch, then the next epoch
  // begins. An exception of the BatchMaker surfaces here when its batch is due, and again at every
  // later call until seek().
  std::optional<Batch> next();

  // What next() will give: to be saved after a step and handed to seek() later.
  LoaderState state() const { return state_; }
  // Throws Error for a position outside the epoch.
  void seek(const LoaderState& state);

  // Micro-batches per epoch: over all ranks (without what drop_last leaves out, and without
  // padding), and of each rank.
  int64_t batches_in_epoch() const { return batches_; }
  int64_t steps_in_epoch() const { return (batches_ + options_.world - 1) / options_.world; }
  // Samples that drop_last leaves out of every epoch.
  int64_t dropped_per_epoch() const;

 private:
  struct Item {
    std::optional<Batch> batch;  // empty: end of the epoch, or an exception
    std::exception_ptr error;
  };

  void start();
  void stop();
  void work(const std::stop_token& stopping, LoaderState from);
  bool put(const std::stop_token& stopping, Item item);
  Batch make(const std::vector<int64_t>& order, int64_t micro_batch) const;

  const int64_t sample_count_;
  const BatchMaker make_batch_;
  const LoaderOptions options_;
  int64_t batches_ = 0;
  LoaderState state_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Item> queue_;
  std::jthread worker_;  // last: it uses all of the above
};

}  // namespace lapidary
