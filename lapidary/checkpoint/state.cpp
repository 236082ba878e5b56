#include "lapidary/checkpoint/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "lapidary/checkpoint/agreement.h"
#include "lapidary/checkpoint/hf.h"
#include "lapidary/checkpoint/json.h"
#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"

namespace lapidary {
namespace {

constexpr const char* kStem = "optimizer";
constexpr int64_t kVersion = 1;
constexpr int64_t kMost = int64_t{1} << 48;  // far above any run, far below an overflow
constexpr size_t kMaxListed = 20;

struct Field {
  const char* key;
  int64_t TrainingState::*value;
  int64_t least, most;
};
const Field kFields[] = {
    {"step", &TrainingState::step, 0, kMost},
    {"epoch", &TrainingState::epoch, 0, kMost},
    {"position", &TrainingState::position, 0, kMost},
    {"optimizer_steps", &TrainingState::optimizer_steps, 0, kMost},
    {"total_steps", &TrainingState::total_steps, 1, kMost},
    {"schedule_steps", &TrainingState::schedule_steps, 0, kMost},
    {"seed", &TrainingState::seed, std::numeric_limits<int64_t>::min(),
     std::numeric_limits<int64_t>::max()},
    {"micro_batch_size", &TrainingState::micro_batch_size, 1, kMost},
    {"global_batch_size", &TrainingState::global_batch_size, 1, kMost},
    {"samples", &TrainingState::samples, 1, kMost},
};

void check_tensor(const StateTensor& t) {
  if (t.part.begin < 0 || t.part.end < t.part.begin || t.part.end > t.shape.numel() ||
      t.value.numel() != t.part.size() || !t.value.contiguous())
    fail(t.name, fmt::format("elements {} to {} of {} are not what {} can hold", t.part.begin,
                             t.part.end, t.shape.str(), t.value.shape().str()));
}

// Elements [first, first + count) of the part.
Tensor piece_of(const StateTensor& t, int64_t first, int64_t count) {
  return t.value.view({t.value.numel()}).slice(0, first, count);
}

TensorSource source_of(const StateTensor& t) {
  TensorSource source{.name = t.name,
                      .shape = t.shape,
                      .dtype = t.value.dtype(),
                      .target = t.value.dtype(),
                      .part = t.writes ? t.part : Interval{}};
  if (on_host(t.backend)) {
    source.data = t.value.data();
  } else {
    source.fill = [&t](int64_t first, int64_t count, void* out) {
      Context ctx = Context::make(t.backend);
      download(ctx, piece_of(t, first - t.part.begin, count),
               Tensor(out, t.value.dtype(), {count}));
    };
  }
  return source;
}

void read_part(const TensorEntry& entry, const StateTensor& t) {
  if (on_host(t.backend)) return convert_range(entry, t.part.begin, t.value);
  Context ctx = Context::make(t.backend);
  const int64_t most = std::min(kFillElements, t.part.size());
  const OwnedTensor host(Backend::cpu, t.value.dtype(), {most});
  for (int64_t first = 0; first < t.part.size(); first += most) {
    const Tensor piece = host->slice(0, 0, std::min(most, t.part.size() - first));
    convert_range(entry, t.part.begin + first, piece);
    upload(ctx, piece, piece_of(t, first, piece.numel()));
  }
}

// What the files lack, have too much, or hold in another form.
void check_entries(const HfReader& reader, const std::vector<StateTensor>& tensors) {
  Problems problems;
  const auto report = [&](const std::string& name, const std::string& what) {
    if (problems.messages().size() < kMaxListed) problems.add(in_quotes(name), what);
  };
  std::set<std::string_view> names;
  for (const StateTensor& t : tensors) {
    check_tensor(t);
    names.insert(t.name);
    const TensorEntry* entry = reader.find(t.name);
    if (entry == nullptr)
      report(t.name, "is missing");
    else if (entry->shape != t.shape || core_dtype_of(entry->dtype) != t.value.dtype())
      report(t.name, fmt::format("is {} {}, the run needs {} {}", name_of(entry->dtype),
                                 entry->shape.str(), name_of(t.value.dtype()), t.shape.str()));
  }
  for (const TensorEntry* entry : reader.entries())
    if (!names.contains(entry->name)) report(entry->name, "is nothing that this run has");
  if (problems.empty()) return;
  problems.add("optimiser", "its state is of another form than the run's",
               "resume with the same model, frozen parts, optimizer.state_dtype and "
               "optimizer.master_weights");
  problems.throw_if_any(reader.path());
}

void check_relations(const TrainingState& s, const std::string& where, Problems& problems) {
  if (s.step > s.total_steps)
    problems.add(where, fmt::format("step {} of {} steps", s.step, s.total_steps));
  if (s.position > (s.samples + s.micro_batch_size - 1) / s.micro_batch_size)
    problems.add(where, fmt::format("position {} in an epoch of {} samples in micro-batches of {}",
                                    s.position, s.samples, s.micro_batch_size));
}

}  // namespace

void write_state_tensors(const std::string& directory, const std::vector<StateTensor>& tensors,
                         ProcessGroup& group) {
  std::vector<TensorSource> sources;
  together(group, directory, [&] {
    for (const StateTensor& t : tensors) {
      check_tensor(t);
      sources.push_back(source_of(t));
    }
  });
  write_hf_model(directory, sources, {.stem = kStem}, group);
}

void read_state_tensors(const std::string& directory, const std::vector<StateTensor>& tensors) {
  const HfReader reader(directory, kStem);
  check_entries(reader, tensors);
  for (const StateTensor& t : tensors)
    if (!t.part.empty()) read_part(reader.at(t.name), t);
}

std::string to_json(const TrainingState& state) {
  nlohmann::ordered_json json;
  json["version"] = kVersion;
  for (const Field& field : kFields) json[field.key] = state.*field.value;
  return json.dump(2) + "\n";
}

TrainingState parse_training_state(const std::string& text, const std::string& where) {
  const nlohmann::json json = parse_json(text, where, 4);
  const auto version = json.is_object() ? json.find("version") : json.end();
  if (!json.is_object() || version == json.end() || *version != kVersion)
    fail(where, fmt::format("is not a training state of version {}", kVersion));
  TrainingState state;
  Problems problems;
  std::set<std::string> known = {"version"};
  for (const Field& field : kFields) {
    known.insert(field.key);
    const auto found = json.find(field.key);
    if (found == json.end()) {
      problems.add(where, in_quotes(field.key) + " is missing");
    } else if (!found->is_number_integer() ||
               (found->is_number_unsigned() &&
                found->get<uint64_t>() > static_cast<uint64_t>(field.most)) ||
               found->get<int64_t>() < field.least || found->get<int64_t>() > field.most) {
      problems.add(where,
                   fmt::format("{} is {}, not a whole number from {} to {}", in_quotes(field.key),
                               shortened(found->dump()), field.least, field.most));
    } else {
      state.*field.value = found->get<int64_t>();
    }
  }
  for (const auto& [key, value] : json.items())
    if (!known.contains(key) && problems.messages().size() < kMaxListed)
      problems.add(where, in_quotes(key) + " is an unknown key");
  if (problems.empty()) check_relations(state, where, problems);
  problems.throw_if_any(where);
  return state;
}

void require_same_data(const TrainingState& saved, const TrainingState& run,
                       const std::string& where) {
  Problems problems;
  const auto compare = [&](const char* what, int64_t a, int64_t b) {
    if (a != b)
      problems.add(where, fmt::format("was made with {} {}, the run has {}", what, a, b),
                   "resume with the same, or train the checkpoint's model in a new run");
  };
  compare("seed", saved.seed, run.seed);
  compare("local_batch_size", saved.micro_batch_size, run.micro_batch_size);
  compare("global_batch_size", saved.global_batch_size, run.global_batch_size);
  compare("a number of samples of", saved.samples, run.samples);
  problems.throw_if_any(where);
}

}  // namespace lapidary
