#include "lapidary/parallel/fsdp.h"

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/ops/elementwise.h"

namespace lapidary {
namespace {

// Elements that a tensor takes of shared memory: every one starts on a whole cache line.
int64_t room(int64_t elements) {
  constexpr int64_t kSpacing = 64;
  return (elements + kSpacing - 1) / kSpacing * kSpacing;
}

bool has_gradient(const Parameter& p) { return p.trainable && !p.buffer; }

// Of this rank's part before it is sharded.
Shape local_shape(const Shape& shape, Placement placement, const Mesh& mesh, int64_t rank) {
  Shape local = shape;
  if (placement == Placement::expert) {
    local[0] = dealt(shape[0], mesh.sparse_sizes().ep, mesh.sparse(rank).ep).size();
  }
  return local;
}

}  // namespace

Interval shard_interval(const Shape& shape, Placement placement, const Mesh& mesh, int64_t rank,
                        int64_t alignment) {
  if (placement == Placement::dense) {
    return chunk_of(shape.numel(), mesh.sizes().dp_shard, mesh.dense(rank).dp_shard, alignment);
  }
  const Mesh::Sparse size = mesh.sparse_sizes(), at = mesh.sparse(rank);
  const Interval experts = dealt(shape[0], size.ep, at.ep);
  const int64_t each = shape.numel() / shape[0];
  return shifted(chunk_of(experts.size() * each, size.ep_shard, at.ep_shard, alignment),
                 experts.begin * each);
}

Fsdp::Fsdp(const MeshGroups& groups, const Options& options,
           std::vector<std::vector<Parameter*>> units)
    : groups_(groups), options_(options) {
  for (size_t u = 0; u < units.size(); ++u) {
    std::vector<Entry>& entries = units_.emplace_back();
    for (Parameter* p : units[u]) {
      by_name_.emplace(p->name, std::pair(u, entries.size()));
      entries.push_back(make_entry(*p));
      sharded_ = sharded_ || entries.back().size > 1;
    }
  }
  allocate_values();
}

Fsdp::Entry Fsdp::make_entry(Parameter& p) const {
  Entry entry;
  const int64_t rank = groups_.rank();
  entry.whole = &p;
  entry.group = p.placement == Placement::dense ? &groups_.dp_shard() : &groups_.ep_shard();
  entry.size = entry.group->size();
  entry.local = local_shape(p.shape, p.placement, groups_.mesh(), rank);
  entry.chunk = chunk_size(entry.local.numel(), entry.size, options_.alignment);
  entry.interval = shard_interval(p.shape, p.placement, groups_.mesh(), rank, options_.alignment);
  entry.shard = {.name = p.name,
                 .shape = entry.size > 1 ? Shape{entry.interval.size()} : entry.local,
                 .placement = p.placement,
                 .init = p.init,
                 .buffer = p.buffer};
  return entry;
}

Tensor Fsdp::own_memory(std::vector<OwnedTensor>& owners, Dtype dtype, int64_t elements) {
  return owners.emplace_back(options_.backend, dtype, Shape{elements}).get();
}

Fsdp::Slot& Fsdp::slot_of(int64_t unit) {
  const int64_t index = options_.resident ? unit : unit == root() ? 2 : unit % 2;
  return slots_[static_cast<size_t>(index)];
}

void Fsdp::allocate_values() {
  slots_.resize(options_.resident ? units_.size() : 3);
  std::unordered_map<Slot*, int64_t> needed;
  const auto elements = [](const Entry& entry) {
    return entry.size > 1 ? room(entry.whole_elements()) : 0;
  };
  for (int64_t u = 0; u <= root(); ++u) {
    int64_t sum = 0;
    for (const Entry& entry : units_[static_cast<size_t>(u)]) sum += elements(entry);
    int64_t& most = needed[&slot_of(u)];
    most = std::max(most, sum);
  }
  for (const auto& [slot, sum] : needed) {
    if (sum > 0) slot->memory = OwnedTensor(options_.backend, options_.dtype, {sum});
  }
  for (int64_t u = 0; u <= root(); ++u) {
    int64_t at = 0;
    for (Entry& entry : units_[static_cast<size_t>(u)]) {
      const int64_t count = entry.local.numel();
      if (entry.size == 1) {
        entry.whole->value = own_memory(values_, options_.dtype, count).view(entry.local);
        entry.shard.value = entry.whole->value;
        continue;
      }
      entry.gathered = slot_of(u).memory->slice(0, at, entry.whole_elements());
      at += elements(entry);
      entry.whole->value = entry.gathered.slice(0, 0, count).view(entry.local);
      entry.own = options_.resident
                      ? entry.gathered.slice(0, entry.group->rank() * entry.chunk, entry.chunk)
                      : own_memory(values_, options_.dtype, entry.chunk);
      entry.shard.value = entry.own.slice(0, 0, entry.interval.size());
    }
  }
}

// ---- weights -----------------------------------------------------------------------------------

void Fsdp::prefetch(Context& ctx, int64_t unit) {
  if (!sharded_ || ctx.backend == Backend::meta || unit < 0 || unit > root()) return;
  Slot& slot = slot_of(unit);
  if (slot.unit == unit) return;
  for (Pending& pending : slot.pending) pending.wait();
  slot.pending.clear();
  slot.unit = unit;
  for (const Entry& entry : units_[static_cast<size_t>(unit)]) {
    if (entry.size == 1) continue;
    slot.pending.push_back(entry.group->start_all_gather(entry.own, entry.gathered));
  }
}

void Fsdp::gather(Context& ctx, int64_t unit) {
  prefetch(ctx, unit);
  if (!sharded_) return;
  Slot& slot = slot_of(unit);
  for (Pending& pending : slot.pending) pending.wait();
  slot.pending.clear();
}

void Fsdp::weights_changed() {
  for (Slot& slot : slots_) {
    for (Pending& pending : slot.pending) pending.wait();
    slot.pending.clear();
    slot.unit = -1;
  }
}

// ---- gradients ---------------------------------------------------------------------------------

// Memory of one layer after the other, in a buffer that all layers share.
class Fsdp::SharedRoom {
 public:
  Tensor take(const OwnedTensor& buffer, int64_t elements) {
    const int64_t begin = used_;
    used_ += room(elements);
    return buffer->defined() ? buffer->slice(0, begin, elements) : Tensor();
  }
  int64_t used() const { return used_; }

 private:
  int64_t used_ = 0;
};

// Whether the whole gradients of a layer's parameter, and those of its shard, lie in shared memory.
bool Fsdp::shares(const Entry& e) const {
  return kind_ == GradientBuffers::per_layer || (kind_ == GradientBuffers::sharded && e.size > 1);
}
bool Fsdp::shares_reduced(const Entry& e) const {
  return kind_ == GradientBuffers::per_layer && e.size > 1;
}

void Fsdp::allocate_layer_gradients() {
  int64_t most = 0, most_reduced = 0;
  for (int64_t u = 0; u < root(); ++u) {
    SharedRoom whole, reduced;
    for (const Entry& e : units_[static_cast<size_t>(u)]) {
      if (!has_gradient(*e.whole)) continue;
      if (shares(e)) whole.take(layer_gradients_, e.whole_elements());
      if (shares_reduced(e)) reduced.take(layer_reduced_, e.chunk);
    }
    most = std::max(most, whole.used());
    most_reduced = std::max(most_reduced, reduced.used());
  }
  const Dtype acc = accumulate_dtype(options_.dtype);
  if (most > 0) layer_gradients_ = OwnedTensor(options_.backend, acc, {most});
  if (most_reduced > 0) layer_reduced_ = OwnedTensor(options_.backend, acc, {most_reduced});
}

void Fsdp::allocate_gradients(GradientBuffers kind) {
  const bool first = !kind_;
  if (first) {
    kind_ = kind;
    allocate_layer_gradients();
  }
  const Dtype acc = accumulate_dtype(options_.dtype);
  for (int64_t u = 0; u <= root(); ++u) {
    const bool layer = first && u < root();  // what is trained later on has memory of its own
    SharedRoom whole, reduced;
    for (Entry& e : units_[static_cast<size_t>(u)]) {
      e.shard.trainable = e.whole->trainable;
      if (!has_gradient(*e.whole) || e.whole->grad.defined()) continue;
      e.shared = layer && shares(e);
      e.grads = e.shared ? whole.take(layer_gradients_, e.whole_elements())
                         : own_memory(gradients_, acc, e.whole_elements());
      e.whole->grad = e.grads.slice(0, 0, e.local.numel()).view(e.local);
      e.shard.grad = e.whole->grad;
      if (e.size == 1) continue;
      e.reduced = layer && shares_reduced(e) ? reduced.take(layer_reduced_, e.chunk)
                                             : own_memory(gradients_, acc, e.chunk);
      e.shard.grad = e.reduced.slice(0, 0, e.interval.size());
    }
  }
}

void Fsdp::zero_gradients(Context& ctx, GradientBuffers kind) {
  for (const OwnedTensor& gradient : gradients_) ops::fill_zero(ctx, gradient.get());
  for (std::vector<Entry>& unit : units_) {
    for (Entry& entry : unit) entry.fresh = true;
  }
  allocate_gradients(kind);
}

void Fsdp::begin_backward(Context& ctx, int64_t unit) {
  if (layer_gradients_->defined()) ops::fill_zero(ctx, layer_gradients_.get());
  if (kind_ != GradientBuffers::per_layer) return;
  for (Entry& entry : units_[static_cast<size_t>(unit)]) entry.fresh = true;
}

void Fsdp::reduce(Context& ctx, Entry& entry) {
  const ArenaScope scope(ctx.scratch);
  const bool meta = ctx.backend == Backend::meta;
  Tensor sum = entry.reduced;
  if (meta || !entry.fresh) sum = ctx.scratch.alloc(entry.reduced.dtype(), {entry.chunk});
  if (meta) return;
  entry.group->reduce_scatter(entry.grads, sum);
  if (entry.shard.placement == Placement::dense) groups_.dp_replicate().all_reduce(sum);
  if (!entry.fresh) {
    const Tensor total = entry.reduced.view({1, entry.chunk});
    ops::axpby(ctx, {.a = total, .b = sum.view({1, entry.chunk}), .out = total});
  }
  entry.fresh = false;
  if (!entry.shared) ops::fill_zero(ctx, entry.grads);
}

void Fsdp::reduce(Context& ctx, int64_t unit) {
  for (Entry& entry : units_[static_cast<size_t>(unit)]) {
    if (entry.size > 1 && entry.reduced.defined() && has_gradient(*entry.whole)) {
      reduce(ctx, entry);
    }
  }
}

int64_t Fsdp::gradient_bytes() const {
  int64_t bytes = layer_gradients_->bytes() + layer_reduced_->bytes();
  for (const OwnedTensor& gradient : gradients_) bytes += gradient->bytes();
  return bytes;
}

void Fsdp::sum_squares(Context& ctx, const Tensor& squares) const {
  if (!sharded_ || ctx.backend == Backend::meta) return;
  groups_.dp_shard().all_reduce(squares.slice(0, static_cast<int64_t>(Placement::dense), 1));
  groups_.data().all_reduce(squares.slice(0, static_cast<int64_t>(Placement::expert), 1));
}

// ---- shards ------------------------------------------------------------------------------------

std::vector<Parameter*> Fsdp::optimizer_parameters(int64_t unit) {
  std::vector<Parameter*> out;
  for (Entry& entry : units_[static_cast<size_t>(unit)]) {
    entry.shard.trainable = entry.whole->trainable;
    out.push_back(entry.is_whole() ? entry.whole : &entry.shard);
  }
  return out;
}

std::vector<Parameter*> Fsdp::optimizer_parameters() {
  std::vector<Parameter*> out;
  for (int64_t u = 0; u <= root(); ++u) {
    for (Parameter* p : optimizer_parameters(u)) out.push_back(p);
  }
  return out;
}

const Fsdp::Entry& Fsdp::entry_of(const Parameter& parameter) const {
  const auto found = by_name_.find(parameter.name);
  if (found == by_name_.end()) fail(parameter.name, "is not a parameter of the model");
  return units_[found->second.first][found->second.second];
}

Fsdp::Shard Fsdp::shard_of(const Parameter& parameter) const {
  const Entry& entry = entry_of(parameter);
  const Parameter& held = entry.is_whole() ? *entry.whole : entry.shard;
  const bool dense = held.placement == Placement::dense;
  return {.whole = entry.whole->shape,
          .interval = entry.interval,
          .value = held.value,
          .grad = held.grad,
          .first_replica = !dense || groups_.dp_replicate().rank() == 0};
}

OwnedTensor Fsdp::whole(const Parameter& parameter, const ConstTensor& part) const {
  const Entry& entry = entry_of(parameter);
  const Shape& shape = entry.whole->shape;
  OwnedTensor mine = to_host(options_.backend, part);
  if (!sharded_ && groups_.data().size() == 1) return mine;
  const ProcessGroup& data = groups_.data();
  const Mesh& mesh = groups_.mesh();
  const auto interval = [&](int64_t rank) {
    const Interval held =
        shard_interval(shape, entry.shard.placement, mesh, rank, options_.alignment);
    const bool first =
        entry.shard.placement == Placement::expert || mesh.dense(rank).dp_replicate == 0;
    return first ? held : Interval{held.begin, held.begin};
  };
  std::vector<int64_t> send(static_cast<size_t>(data.size())), receive(send);
  send[0] = interval(groups_.rank()).size();
  int64_t total = 0;
  for (int64_t r = 0; r < data.size() && data.rank() == 0; ++r) {
    receive[static_cast<size_t>(r)] = interval(r).size();
    total += interval(r).size();
  }
  const OwnedTensor arrived(Backend::cpu, part.dtype(), {total});
  groups_.data().all_to_all_v(mine->view({mine->numel()}).slice(0, 0, send[0]), send, arrived.get(),
                              receive);
  if (data.rank() != 0) return {};
  OwnedTensor out(Backend::cpu, part.dtype(), shape);
  Context host = Context::make(Backend::cpu);
  int64_t at = 0;
  for (int64_t r = 0; r < data.size(); ++r) {
    const Interval held = interval(r);
    if (held.empty()) continue;
    const Tensor from = arrived->slice(0, at, held.size());
    copy_bytes(host, out->view({shape.numel()}).slice(0, held.begin, held.size()).data(),
               from.data(), from.bytes());
    at += held.size();
  }
  return out;
}

}  // namespace lapidary
