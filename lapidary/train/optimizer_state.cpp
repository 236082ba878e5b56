#include <fmt/format.h>

#include "lapidary/core/error.h"
#include "lapidary/ops/quantize.h"
#include "lapidary/train/optimizer.h"

namespace lapidary {
namespace {

constexpr int64_t kBlock = ops::kQuantBlock;

int64_t blocks(int64_t elements) { return (elements + kBlock - 1) / kBlock; }

// One scale for each block. Blocks are counted from where a shard begins, so a shard must begin and
// end where a block of the whole tensor does.
ParameterShard scales_of(const ParameterShard& shard, const std::string& name) {
  const int64_t n = shard.whole.numel();
  const bool aligned =
      shard.part.begin % kBlock == 0 && (shard.part.end % kBlock == 0 || shard.part.end == n);
  if (!aligned && !shard.part.empty())
    fail(name,
         fmt::format("elements {} to {} of {} are no whole blocks of {}, so their 8-bit moments "
                     "can't be saved for any mesh",
                     shard.part.begin, shard.part.end, n, kBlock),
         "use optimizer.state_dtype bf16 or fp32, or another ep_size");
  const Interval part =
      shard.part.empty() ? Interval{} : Interval{shard.part.begin / kBlock, blocks(shard.part.end)};
  return {{blocks(n)}, part, shard.writes};
}

}  // namespace

std::vector<StateTensor> AdamW::state(const ShardOf& shard_of) {
  std::vector<StateTensor> out;
  const auto add = [&](const std::string& name, const ParameterShard& shard, const Tensor& value) {
    if (!value.defined()) return;
    if (shard.part.size() > value.numel())
      fail(name, fmt::format("a shard of {} elements does not fit {}", shard.part.size(),
                             value.shape().str()));
    out.push_back({.name = name,
                   .shape = shard.whole,
                   .part = shard.part,
                   .writes = shard.writes,
                   .value = value.view({value.numel()}).slice(0, 0, shard.part.size()),
                   .backend = backend_});
  };
  for (const Entry& entry : entries_) {
    const Parameter& p = *entry.parameter;
    const ParameterShard shard =
        shard_of ? shard_of(p) : ParameterShard{p.shape, {0, p.shape.numel()}};
    add(p.name + ".exp_avg", shard, entry.m.get());
    add(p.name + ".exp_avg_sq", shard, entry.v.get());
    if (entry.m_scale->defined()) {
      const ParameterShard scales = scales_of(shard, p.name);
      add(p.name + ".exp_avg_scale", scales, entry.m_scale.get());
      add(p.name + ".exp_avg_sq_scale", scales, entry.v_scale.get());
    }
    add(p.name + ".master", shard, entry.master.get());
  }
  return out;
}

}  // namespace lapidary
