#include "lapidary/train/trainer.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "lapidary/core/error.h"
#include "lapidary/core/transfer.h"
#include "lapidary/models/gemma4/generation.h"
#include "lapidary/train/samples.h"

namespace lapidary {
namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// Of the GPU when the model lies there, else of this process.
double peak_memory_gib(Backend backend) {
  if (backend == Backend::cuda) return static_cast<double>(gpu::peak_bytes()) / kGiB;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024.0 / kGiB;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Tokens of a batch without the tail of each row that has no labels, as NeMo counts them.
int64_t tokens_without_tail(const Batch& batch) {
  int64_t count = 0;
  for (int64_t b = 0; b < batch.rows; ++b) {
    int64_t length = batch.cols;
    while (length > 0 &&
           batch.labels[static_cast<size_t>(b * batch.cols + length - 1)] == kIgnoreLabel) {
      --length;
    }
    count += length;
  }
  return count;
}

// Over all ranks.
std::optional<ExpertLoad> load_of(gemma4::Gemma4ForConditionalGeneration& model) {
  if (!model.language_model().expert_loads().defined()) return std::nullopt;
  const OwnedTensor fetched = to_host(model.backend(), model.language_model().expert_loads());
  const Tensor& loads = fetched.get();
  model.groups().data().all_reduce(loads);
  std::vector<std::vector<int64_t>> tokens;
  for (int64_t i = 0; i < loads.dim(0); ++i) {
    const int64_t* row = loads.as<int64_t>() + i * loads.dim(1);
    tokens.emplace_back(row, row + loads.dim(1));
  }
  return expert_load(tokens);
}

std::string json_losses(double train, std::optional<double> validation) {
  return validation ? fmt::format("{{\"train_loss\": {}, \"default\": {}}}\n", train, *validation)
                    : fmt::format("{{\"train_loss\": {}}}\n", train);
}

// The directory of a tokenizer that the recipe names, "" when it names none.
std::string directory_of(const std::string& tokenizer) {
  const std::filesystem::path path = tokenizer;
  if (tokenizer.empty() || std::filesystem::is_directory(path)) return tokenizer;
  return path.has_parent_path() ? path.parent_path().string() : ".";
}

AdamWOptions adamw_options(const Recipe& recipe) {
  const OptimizerRecipe& o = recipe.optimizer;
  return {.beta1 = o.betas.at(0),
          .beta2 = o.betas.at(1),
          .eps = o.eps,
          .moments = parse_moment_type(o.state_dtype),
          .master_weights = o.master_weights,
          .seed = static_cast<uint64_t>(recipe.seed)};
}

int64_t num_trained(gemma4::Gemma4ForConditionalGeneration& model) {
  int64_t count = 0;
  model.for_each_parameter([&](const Parameter& p) {
    if (p.trainable && !p.buffer) count += p.shape.numel();
  });
  return count;
}

// "mesh: 8 ranks: dp_replicate 2 x dp_shard 4, ep 4 x ep_shard 2, ZeRO-3"
std::string mesh_line(const Mesh& mesh, bool experts, const ShardingRecipe& sharding) {
  const Mesh::Dense& dense = mesh.sizes();
  const Mesh::Sparse& sparse = mesh.sparse_sizes();
  return fmt::format(
      "mesh: {} ranks: dp_replicate {} x dp_shard {}{}, {}", mesh.world_size(), dense.dp_replicate,
      dense.dp_shard,
      experts ? fmt::format(", ep {} x ep_shard {}", sparse.ep, sparse.ep_shard) : "",
      sharding.resident_weights() ? "ZeRO-2" : "ZeRO-3");
}

void require_mesh_of_recipe(const Recipe& recipe, const Mesh& mesh) {
  if (recipe.mesh.world_size != mesh.world_size() || recipe.data_ranks() != mesh.dp_size()) {
    fail(
        "trainer",
        fmt::format("the recipe was loaded for {} ranks, {} of them with rows of their own; the "
                    "mesh has {} and {}",
                    recipe.mesh.world_size, recipe.data_ranks(), mesh.world_size(), mesh.dp_size()),
        "load it for the mesh");
  }
}

}  // namespace

Trainer::Trainer(const Recipe& recipe, const TrainerConsole& console, const MeshGroups& groups)
    : Trainer(recipe, console,
              std::shared_ptr<const MeshGroups>(std::shared_ptr<void>(), &groups)) {}

Trainer::Trainer(const Recipe& recipe, const TrainerConsole& console,
                 std::shared_ptr<const MeshGroups> groups)
    : recipe_(recipe),
      console_(console),
      groups_(std::move(groups)),
      data_parallel_(groups_->data()),
      resumed_(find_checkpoint(recipe.checkpoint.checkpoint_dir, recipe.checkpoint.restore_from,
                               groups_->data())),
      model_(build_model(recipe, *groups_, resumed_ ? resumed_->model_directory() : "")),
      tokenizer_(load_recipe_tokenizer(recipe)),
      data_(prepare_data(recipe, recipe.dataset, true, tokenizer_.get(), model_.config().text)) {
  require_mesh_of_recipe(recipe_, groups_->mesh());
  const gemma4::TextConfig& text = model_.config().text;
  const int64_t pad = text.pad_token_id.value_or(0);
  if (recipe_.validation_dataset.given) {
    validation_data_ =
        prepare_data(recipe_, recipe_.validation_dataset, false, tokenizer_.get(), text);
    evaluator_.emplace(*validation_data_->samples, recipe_.step_scheduler.local_batch_size, pad,
                       data_parallel_);
  }
  loader_.emplace(static_cast<int64_t>(data_.samples->size()),
                  collate_from(data_.samples, {.pad_id = pad, .fixed_length = data_.fixed_length}),
                  LoaderOptions{.batch_size = recipe_.step_scheduler.local_batch_size,
                                .seed = static_cast<uint64_t>(recipe_.seed),
                                .shuffle = recipe_.dataloader.shuffle,
                                .drop_last = recipe_.dataloader.drop_last,
                                .rank = data_parallel_.rank(),
                                .world = data_parallel_.size()});
  prepare_steps();
  if (resumed_) resume();
  plan_memory();
  // Last: a run that cannot start leaves the folder as it is.
  store_.emplace(recipe_.checkpoint.checkpoint_dir, groups_->data(), resumed_);
  if (reports()) metrics_.emplace(store_->folder());
}

void Trainer::prepare_steps() {
  const int64_t accumulation = recipe_.gradient_accumulation();
  const int64_t steps_of_epoch = (loader_->steps_in_epoch() + accumulation - 1) / accumulation;
  total_steps_ = steps_of_epoch * recipe_.step_scheduler.num_epochs;
  if (recipe_.step_scheduler.max_steps) {
    total_steps_ = std::min(total_steps_, *recipe_.step_scheduler.max_steps);
  }
  // Over all ranks: the rates do not depend on their number.
  schedule_steps_ =
      scheduled_steps(recipe_.step_scheduler.num_epochs, loader_->batches_in_epoch(),
                      accumulation * data_parallel_.size(), recipe_.step_scheduler.max_steps);
  schedule_ = recipe_.lr_schedule(schedule_steps_);
  AdamW::FirstElement first_element;  // counts where elements differ: in blocks
  if (shard_alignment(recipe_, model_.dtype()) > 1) {
    first_element = [this](const Parameter& p) { return model_.fsdp().shard_of(p).interval.begin; };
  }
  optimizer_.emplace(model_.backend(), adamw_options(recipe_), model_.optimizer_parameters(),
                     first_element);
  step_on_device_.emplace(
      model_, *optimizer_,
      GradientFlow{.optimizer_in_bwd = recipe_.optimizer_in_bwd,
                   .defer_fsdp_grad_sync = recipe_.sharding.defer_fsdp_grad_sync,
                   .micro_batches = accumulation});
  if (recipe_.checkpoint.enabled) optimizer_state();  // throws now what saving it would
}

TrainingState Trainer::state() const {
  const LoaderState next = loader_->state();
  return {.step = step_,
          .epoch = next.epoch,
          .position = next.position,
          .optimizer_steps = optimizer_->steps(),
          .total_steps = total_steps_,
          .schedule_steps = schedule_steps_,
          .seed = recipe_.seed,
          .micro_batch_size = recipe_.step_scheduler.local_batch_size,
          .global_batch_size = recipe_.step_scheduler.global_batch_size,
          .samples = static_cast<int64_t>(data_.samples->size())};
}

std::vector<StateTensor> Trainer::optimizer_state() {
  return optimizer_->state([this](const Parameter& p) -> ParameterShard {
    const Fsdp::Shard shard = model_.fsdp().shard_of(p);
    return {shard.whole, shard.interval, shard.first_replica};
  });
}

void Trainer::resume() {
  const TrainingState& saved = resumed_->state;
  require_same_data(saved, state(), resumed_->directory);
  read_state_tensors(resumed_->optimizer_directory(), optimizer_state());
  optimizer_->set_steps(saved.optimizer_steps);
  loader_->seek({saved.epoch, saved.position});
  step_ = saved.step;
  epoch_ = saved.epoch;
  // Steps end where all ranks have taken equally many, on any number of them.
  batches_of_epoch_ = saved.position / data_parallel_.size();
  last_model_directory_ = resumed_->model_directory();
}

void Trainer::plan_memory() {
  const int64_t rows = recipe_.step_scheduler.local_batch_size;
  MemoryPlan plan =
      step_on_device_->plan(gemma4::TextInputs::of_shape(rows, data_.longest), recipe_.recompute);
  if (evaluator_) {
    const MemoryPlan eval = model_.plan_loss(
        gemma4::TextInputs::of_shape(evaluator_->rows(), evaluator_->cols()), {.backward = false});
    plan.activations = std::max(plan.activations, eval.activations);
    plan.scratch = std::max(plan.scratch, eval.scratch);
    plan.staging = std::max(plan.staging, eval.staging);
  }
  ctx_ = Context::make(model_.backend(), plan);
}

void Trainer::message(const std::string& line) {
  if (progress_)
    progress_->message(line);
  else if (console_.out != nullptr && reports())
    *console_.out << line << "\n" << std::flush;
}

void Trainer::describe() {
  const gemma4::TextConfig& text = model_.config().text;
  message(fmt::format("model: {:.2f} M parameters, {:.2f} M trained, {} layers{}, {}",
                      static_cast<double>(gemma4::num_parameters(model_.config())) / 1e6,
                      static_cast<double>(num_trained(model_)) / 1e6, text.num_hidden_layers,
                      text.enable_moe_block ? fmt::format(", {} experts, top {}", text.num_experts,
                                                          text.top_k_experts)
                                            : std::string(),
                      name_of(model_.dtype())));
  if (groups_->mesh().world_size() > 1) {
    message(mesh_line(groups_->mesh(), text.enable_moe_block, recipe_.sharding));
  }
  message(fmt::format("data: {} samples, longest {} tokens{}; {} dropped, {} truncated",
                      data_.samples->size(), data_.longest,
                      data_.packing
                          ? fmt::format(", packed from {} documents", data_.packing->documents)
                          : std::string(),
                      data_.report.dropped + (data_.packing ? data_.packing->dropped : 0),
                      data_.report.truncated + (data_.packing ? data_.packing->truncated : 0)));
  message(fmt::format(
      "memory: {:.1f} MiB activations ({} recompute), {:.1f} MiB scratch, "
      "{:.1f} MiB gradients, {:.1f} MiB optimiser state{}",
      static_cast<double>(ctx_.activations.capacity()) / 1048576.0, nn::name_of(recipe_.recompute),
      static_cast<double>(ctx_.scratch.capacity()) / 1048576.0,
      static_cast<double>(model_.gradient_bytes()) / 1048576.0,
      static_cast<double>(optimizer_->state_bytes()) / 1048576.0,
      groups_->mesh().world_size() > 1 ? ", on the first rank" : ""));
  message(fmt::format("steps: {} of {} samples, logs in {}", total_steps_,
                      recipe_.step_scheduler.global_batch_size, store_->folder()));
  for (const std::string& warning : model_.config().warnings) message("warning: " + warning);
  for (const std::string& warning : model_.load_report().warnings) message("warning: " + warning);
  for (const std::string& note : recipe_.notes) message("note: " + note);
  if (const size_t towers = model_.load_report().passthrough.size(); towers > 0) {
    message(fmt::format("note: {} tensors of the vision and audio towers are kept as they are",
                        towers));
  }
  if (resumed_) {
    for (const std::string& passed_over : resumed_->messages) message("note: " + passed_over);
    message(
        fmt::format("resumed: {}, {} of {} steps done", resumed_->directory, step_, total_steps_));
  }
  if (!store_->moved_to().empty()) {
    message("note: what an earlier run left in " + store_->folder() + " is now in " +
            store_->moved_to() + "/ there");
  }
}

// Micro-batches of the next step: fewer at the end of an epoch.
std::vector<Batch> Trainer::next_batches() {
  std::vector<Batch> batches;
  const int64_t left = loader_->steps_in_epoch() - batches_of_epoch_;
  const int64_t count = std::min(left, recipe_.gradient_accumulation());
  while (static_cast<int64_t>(batches.size()) < count) batches.push_back(*loader_->next());
  batches_of_epoch_ += count;
  epoch_ended_ = batches_of_epoch_ == loader_->steps_in_epoch();
  if (epoch_ended_) {
    batches_of_epoch_ = 0;
    loader_->next();  // the loader's own mark of the end
  }
  return batches;
}

TrainRecord Trainer::train_step(const std::vector<Batch>& batches) {
  const double start = seconds_now();
  TrainRecord record{.step = step_, .epoch = epoch_};
  for (const Batch& batch : batches) {
    record.num_label_tokens += batch.num_label_tokens;
    record.num_tokens_per_step += tokens_without_tail(batch);
  }
  record.num_label_tokens = data_parallel_.sum(record.num_label_tokens);
  record.num_tokens_per_step = data_parallel_.sum(record.num_tokens_per_step);
  const double grad_scale =
      1.0 / static_cast<double>(std::max<int64_t>(record.num_label_tokens, 1));

  const ArenaScope staging(ctx_.staging);
  std::vector<MicroBatch> micro;
  for (const Batch& batch : batches) micro.push_back({text_inputs(batch), label_tensor(batch)});
  step_on_device_->issue(ctx_, micro,
                         {.recompute = recipe_.recompute,
                          .max_grad_norm = recipe_.max_grad_norm,
                          .lr = schedule_->lr(step_),
                          .weight_decay = recipe_.optimizer.weight_decay,
                          .grad_scale = grad_scale});
  const TrainStep::Result result = step_on_device_->read(ctx_);
  record.loss = data_parallel_.sum(result.loss) * grad_scale;
  record.grad_norm = result.grad_norm;
  if (!std::isfinite(record.loss) || !std::isfinite(record.grad_norm)) {
    fail(fmt::format("step {}", step_),
         fmt::format("loss {} and gradient norm {} are not finite; {}", record.loss,
                     record.grad_norm,
                     recipe_.optimizer_in_bwd && recipe_.max_grad_norm <= 0.0
                         ? "layers above the first broken gradient were updated"
                         : "the model was not updated"),
         "lower optimizer.lr, or look at the data of this step");
  }
  ++step_;
  record.lr = schedule_->lr(step_);
  record.mem_gib = peak_memory_gib(model_.backend());
  record.tps = static_cast<double>(record.num_tokens_per_step) / (seconds_now() - start);
  record.tps_per_gpu = record.tps / static_cast<double>(data_parallel_.size());
  record.moe = load_of(model_);
  return record;
}

bool Trainer::due(std::optional<int64_t> every) const { return every && step_ % *every == 0; }

void Trainer::validate() {
  if (!evaluator_) return;
  const Evaluation evaluation = evaluator_->run(ctx_, model_);
  val_loss_ = evaluation.loss;
  const ValidationRecord record{.step = std::max<int64_t>(step_ - 1, 0),
                                .epoch = epoch_,
                                .val_loss = evaluation.loss,
                                .lr = schedule_->lr(step_),
                                .num_label_tokens = evaluation.num_label_tokens,
                                .mem_gib = peak_memory_gib(model_.backend())};
  if (metrics_) metrics_->write(record);
  if (progress_) progress_->write(record);
}

void Trainer::save_checkpoint() {
  if (!recipe_.checkpoint.enabled) return;
  const double start = seconds_now();
  last_model_directory_ =
      store_->save(model_, {.epoch = epoch_,
                            .step = step_ - 1,
                            .config_yaml = print_recipe(recipe_),
                            .losses_json = json_losses(last_loss_, val_loss_),
                            .tokenizer_source = directory_of(recipe_.dataset.tokenizer),
                            .state = state(),
                            .optimizer_state = [this] { return optimizer_state(); }});
  message(fmt::format("checkpoint: {} ({:.1f} s)", last_model_directory_, seconds_now() - start));
}

void Trainer::end_of_step(bool last) {
  const bool epoch_checkpoint = epoch_ended_ && recipe_.step_scheduler.save_checkpoint_every_epoch;
  const bool save = due(recipe_.step_scheduler.ckpt_every_steps) || last || epoch_checkpoint;
  if (save || due(recipe_.step_scheduler.val_every_steps)) validate();
  if (save) save_checkpoint();
}

// Signals do not reach all ranks in the same step: one that has come counts for all.
bool Trainer::stop_requested() const {
  const bool here = console_.stop != nullptr && console_.stop->load();
  return data_parallel_.sum(int64_t{here ? 1 : 0}) > 0;
}

TrainResult Trainer::run() {
  TrainResult result;
  describe();
  if (console_.out != nullptr && reports()) {
    progress_ =
        std::make_unique<Progress>(*console_.out, Progress::Options{.terminal = console_.terminal,
                                                                    .total_steps = total_steps_,
                                                                    .columns = console_.columns});
  }
  if (!resumed_) validate();  // else it stands in the log already
  result.first_val_loss = val_loss_;
  while (step_ < total_steps_ && !result.stopped) {
    const TrainRecord record = train_step(next_batches());
    last_loss_ = record.loss;
    if (metrics_) metrics_->write(record);
    if (progress_) progress_->write(record);
    result.stopped = stop_requested();
    end_of_step(result.stopped || step_ == total_steps_);
    if (epoch_ended_) ++epoch_;
  }
  if (progress_) progress_->finish();
  result.steps = step_;
  result.loss = last_loss_;
  result.val_loss = val_loss_;
  result.model_directory = last_model_directory_;
  if (!result.stopped) sample_answers();
  return result;
}

void Trainer::sample_answers() {
  const PreparedData& data = validation_data_ ? *validation_data_ : data_;
  if (recipe_.samples.num_samples == 0 || !tokenizer_) return;
  for (const std::string& text :
       sampled_answers(model_, *tokenizer_, *data.samples, recipe_.samples,
                       static_cast<uint64_t>(recipe_.seed))) {
    message(text);
  }
}

}  // namespace lapidary
