#include "lapidary/data/loader.h"

#include <fmt/format.h>

#include <algorithm>

#include "lapidary/core/error.h"
#include "lapidary/data/shuffle.h"

namespace lapidary {
namespace {

void check(int64_t sample_count, const LoaderOptions& options) {
  const auto require = [](bool fine, const char* name, int64_t value) {
    if (!fine) fail("data loader", fmt::format("{} can't be {}", name, value));
  };
  require(sample_count > 0, "the number of samples", sample_count);
  require(options.batch_size > 0, "batch_size", options.batch_size);
  require(options.world > 0, "world", options.world);
  require(options.rank >= 0 && options.rank < options.world, "rank", options.rank);
  require(options.prefetch > 0, "prefetch", options.prefetch);
}

// The same for any number of ranks: they see the same samples.
int64_t count_batches(int64_t samples, const LoaderOptions& options) {
  if (options.drop_last) return samples / options.batch_size;
  return (samples + options.batch_size - 1) / options.batch_size;
}

}  // namespace

BatchMaker collate_from(std::shared_ptr<const std::vector<Sample>> samples,
                        const CollateOptions& options) {
  return [samples = std::move(samples), options](std::span<const int64_t> indices) {
    std::vector<const Sample*> chosen;
    chosen.reserve(indices.size());
    for (const int64_t i : indices) chosen.push_back(&samples->at(static_cast<size_t>(i)));
    return collate(chosen, options);
  };
}

DataLoader::DataLoader(int64_t sample_count, BatchMaker make_batch, const LoaderOptions& options)
    : sample_count_(sample_count), make_batch_(std::move(make_batch)), options_(options) {
  check(sample_count_, options_);
  batches_ = count_batches(sample_count_, options_);
  if (batches_ == 0) {
    fail("data loader",
         fmt::format("{} samples fill no micro-batch of {}", sample_count_, options_.batch_size),
         "turn drop_last off or use smaller batches");
  }
  start();
}

DataLoader::~DataLoader() { stop(); }

int64_t DataLoader::dropped_per_epoch() const {
  return options_.drop_last ? sample_count_ - batches_ * options_.batch_size : 0;
}

void DataLoader::start() {
  worker_ = std::jthread([this, from = state_](const std::stop_token& stopping) {
    try {
      work(stopping, from);
    } catch (...) {
      put(stopping, {std::nullopt, std::current_exception()});
    }
  });
}

void DataLoader::stop() {
  worker_.request_stop();
  if (worker_.joinable()) worker_.join();
  queue_.clear();
}

bool DataLoader::put(const std::stop_token& stopping, Item item) {
  std::unique_lock lock(mutex_);
  const bool room = changed_.wait(
      lock, stopping, [this] { return static_cast<int64_t>(queue_.size()) < options_.prefetch; });
  if (!room || stopping.stop_requested()) return false;
  queue_.push_back(std::move(item));
  lock.unlock();
  changed_.notify_all();
  return true;
}

Batch DataLoader::make(const std::vector<int64_t>& order, int64_t micro_batch) const {
  const int64_t real = std::min(micro_batch, batches_ - 1);
  const int64_t begin = real * options_.batch_size;
  const int64_t count = std::min(options_.batch_size, sample_count_ - begin);
  Batch batch =
      make_batch_(std::span(order).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)));
  return micro_batch < batches_ ? std::move(batch) : without_targets(std::move(batch));
}

void DataLoader::work(const std::stop_token& stopping, LoaderState from) {
  while (true) {
    const std::vector<int64_t> order =
        shuffled_order(sample_count_, options_.shuffle, options_.seed, "epoch order", from.epoch);
    for (int64_t turn = from.position; turn < batches_; turn += options_.world) {
      if (!put(stopping, {make(order, turn + options_.rank), nullptr})) return;
    }
    if (!put(stopping, {std::nullopt, nullptr})) return;
    from = {from.epoch + 1, 0};
  }
}

std::optional<Batch> DataLoader::next() {
  Item item;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !queue_.empty(); });
    // The worker has ended after an error: leave it there for the next call.
    if (queue_.front().error) std::rethrow_exception(queue_.front().error);
    item = std::move(queue_.front());
    queue_.pop_front();
  }
  changed_.notify_all();
  if (item.batch) {
    state_.position = std::min(state_.position + options_.world, batches_);
  } else {
    state_ = {state_.epoch + 1, 0};
  }
  return std::move(item.batch);
}

void DataLoader::seek(const LoaderState& state) {
  if (state.epoch < 0 || state.position < 0 || state.position > batches_) {
    fail("data loader",
         fmt::format("epoch {}, position {} is not in an epoch of {} micro-batches", state.epoch,
                     state.position, batches_),
         "resume with the data and the batch size of the saved run");
  }
  stop();
  state_ = state;
  start();
}

}  // namespace lapidary
