#!/usr/bin/env python3
"""One attention period of a Gemma 4 model at real width, random weights, against transformers.

Both run in fp32 (no TF32) on the same GPU, from the same checkpoint: logits, loss and the gradient
of every parameter are compared. With --dtype bf16 both run in bf16 and are compared with
transformers in fp32: lapidary's errors must not be the larger ones. There every token should go to
every expert (--experts 8): a token that rounding sends elsewhere says nothing about arithmetic.
Needs torch, transformers >= 5.17 and safetensors.

  tests/gpu/period_against_transformers.py --lapidary build/bin/lapidary --config-json config.json
  ... --dtype bf16 --tokens 2048 --experts 8
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

LOGITS_BOUND = 1e-5  # largest difference / largest magnitude
GRADIENT_BOUND = 1e-4  # relative L2 norm


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--lapidary", required=True, help="the program")
    p.add_argument("--config-json", required=True, help="config.json of the model to cut from")
    p.add_argument("--layers", type=int, default=6, help="layers of the period")
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--vocab", type=int, default=4096, help="entries that are left of the vocabulary")
    p.add_argument("--experts", type=int, default=0, help="experts, 0 = all of the configuration's")
    p.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--folder", help="for the checkpoint and the results; default: a temporary one")
    return p.parse_args()


def cut_config(args):
    config = json.loads(pathlib.Path(args.config_json).read_text())
    text = config["text_config"]
    text["num_hidden_layers"] = args.layers
    text["layer_types"] = text["layer_types"][: args.layers]
    text["vocab_size"] = text["vocab_size_per_layer_input"] = args.vocab
    if args.experts:
        text["num_experts"] = args.experts
    for i, name in enumerate(("image_token_id", "video_token_id", "audio_token_id")):
        config[name] = args.vocab - 1 - i
    config["vision_config"] = config["audio_config"] = None
    return config


def save_random_model(config, folder):
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration

    text = config["text_config"]
    torch.manual_seed(7)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Gemma4ForConditionalGeneration(Gemma4Config(**config))
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # norms and scales: away from one, so that every gradient is felt
                p.add_(0.1 * torch.randn_like(p))
            elif "router" in name and text["num_experts"] > text["top_k_experts"]:
                p.mul_(100.0)  # decided routing: rounding of fp32 must not flip it
            if name.endswith("q_norm.weight"):  # nor may scores of +-50 blow rounding up
                p.mul_(0.25)
    model.save_pretrained(folder)
    return model


def integer_of(outputs):
    """The indices among a router's outputs, each token's in ascending order."""
    import torch

    found = [t for t in outputs if torch.is_tensor(t) and not t.is_floating_point()]
    return found[0].reshape(-1, found[0].shape[-1]).sort(-1).values.cpu()


def in_fp32(model):
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    model = model.float()
    for module in model.modules():  # made in bf16, which rounded it
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
    model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def in_bf16(folder):
    import torch
    from transformers import Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.cuda()


def run_transformers(model, inputs):
    """Logits, loss, chosen experts and gradients of a model, on the host."""
    import torch

    model.train()
    chosen = []
    for name, module in model.named_modules():
        if name.endswith(".router"):
            module.register_forward_hook(lambda m, i, out: chosen.append(integer_of(out)))
    out = model(input_ids=inputs["input_ids"].cuda(), labels=None)
    logits = out.logits.float()
    targets = inputs["labels"][:, 1:].reshape(-1).cuda()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), targets)
    loss.backward()
    gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach().cpu(), loss.item(), chosen, gradients


def run_lapidary(args, folder):
    start = time.time()
    subprocess.run(
        [args.lapidary, "trace", str(folder), "--inputs", str(folder / "inputs.safetensors"),
         "--output", str(folder / "trace.safetensors"), "--grads", "--dtype", args.dtype, "--device",
         "cuda"], check=True)
    print(f"lapidary trace: {time.time() - start:.1f} s", file=sys.stderr)


class Trace:
    """What lapidary wrote, in the form of run_transformers()."""

    def __init__(self, path):
        from safetensors import safe_open

        self.file = safe_open(path, "pt")
        self.names = set(self.file.keys())

    def results(self):
        get = self.file.get_tensor
        chosen = []
        while f"router_indices.{len(chosen)}" in self.names:
            indices = get(f"router_indices.{len(chosen)}")
            chosen.append(indices.reshape(-1, indices.shape[-1]).sort(-1).values)
        return get("logits"), get("loss").item(), chosen, self

    def get(self, name):
        return self.file.get_tensor("grad." + name) if "grad." + name in self.names else None


def compare(expected, got):
    logits, loss, chosen, gradients = expected
    difference = (got[0].double() - logits.double()).abs().max().item()
    flips = sum((a != b).any(-1).sum().item() for a, b in zip(chosen, got[2]))
    rows = []
    for name, gradient in gradients.items():
        other = got[3].get(name)
        if other is None:
            rows.append((float("inf"), name))
            continue
        e = gradient.cuda().double()
        d = (other.cuda().double() - e).norm().item()
        rows.append((d / max(e.norm().item(), 1e-30), name))
    rows.sort()
    return {"tokens_routed_otherwise": flips,
            "logits_peak_error": difference / logits.abs().max().item(),
            "loss_error": abs(got[1] - loss), "gradients": len(rows),
            "gradient_median": rows[len(rows) // 2][0], "gradient_worst": rows[-1][0],
            "gradient_worst_name": rows[-1][1]}


def verdict(result, peer):
    """fp32: the bounds. bf16: each error at most the peer's."""
    if peer is None:
        return (result["logits_peak_error"] <= LOGITS_BOUND
                and result["gradient_worst"] <= GRADIENT_BOUND)
    return all(result[key] <= peer[key]
               for key in ("logits_peak_error", "gradient_median", "gradient_worst"))


def main():
    args = arguments()
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        model = save_random_model(cut_config(args), folder)
        ids = torch.randint(3, args.vocab - 8, (1, args.tokens))
        inputs = {"input_ids": ids, "labels": ids.clone()}
        save_file(inputs, folder / "inputs.safetensors")
        expected = run_transformers(in_fp32(model), inputs)
        del model
        torch.cuda.empty_cache()
        peer = None
        if args.dtype == "bf16":
            peer = compare(expected, run_transformers(in_bf16(folder), inputs))
            torch.cuda.empty_cache()
        run_lapidary(args, folder)
        result = compare(expected, Trace(folder / "trace.safetensors").results())
    result["ok"] = verdict(result, peer)
    if peer is not None:
        result["transformers"] = peer
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
