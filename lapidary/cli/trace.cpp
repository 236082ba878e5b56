#include "lapidary/train/trace.h"

#include <memory>

#include "lapidary/cli/commands.h"
#include "lapidary/comm/bootstrap.h"

namespace lapidary::cli {
namespace {

// mesh "": all ranks in one group of shards.
void run(const TraceOptions& options, const std::string& mesh) {
  const World world;
  const MeshOptions sizes =
      mesh.empty() ? MeshOptions{.world_size = world.size()} : parse_mesh(mesh, world.size());
  const MeshGroups groups(Mesh(sizes), world.rank(), [&](int64_t color, const std::string& name) {
    return world.split(color, name);
  });
  trace(options, groups);
}

}  // namespace

void add_trace(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "trace", "Write activations and gradients, to compare with another implementation");
  struct Words {
    std::string recompute = "none", dtype = "fp32", device = "cpu", mesh;
  };
  const auto options = std::make_shared<TraceOptions>();
  const auto words = std::make_shared<Words>();
  command->add_option("model", options->model, "Hugging Face model directory")->required();
  command->add_option("--inputs", options->inputs, "safetensors with input_ids, labels, ...")
      ->required();
  command->add_option("--output", options->output, "safetensors to write")->required();
  command->add_flag("--grads", options->grads, "gradients of all parameters too");
  command->add_option("--recompute", words->recompute, "none, light or block")
      ->check(CLI::IsMember({"none", "light", "block"}))
      ->capture_default_str();
  command
      ->add_option("--dtype", words->dtype,
                   "fp32, bf16, or fp64: the reference operations in double")
      ->check(CLI::IsMember({"fp64", "fp32", "bf16"}))
      ->capture_default_str();
  command->add_option("--device", words->device, "cpu or cuda")->capture_default_str();
  command->add_option("--mesh", words->mesh,
                      "on several ranks (mpirun): the sizes of axes, e.g. ep=2,dp_shard=4");
  command->callback([=] {
    options->recompute = nn::parse_recompute(words->recompute);
    options->dtype = parse_dtype(words->dtype);
    options->backend = parse_backend(words->device);
    run(*options, words->mesh);
  });
}

}  // namespace lapidary::cli
