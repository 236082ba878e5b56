#!/usr/bin/env python3
"""transformers beside lapidary on one GPU: the same shapes, random weights, learned routing.

  python3 bench/reference.py period --config 26b-a4b --lapidary build/bin/lapidary
  python3 bench/reference.py step --config 26b-a4b --layers 6 --recompute block --lapidary ...

Every way to run transformers is a child process of its own: one that fails, runs out of memory or
takes too long becomes a row that says so. Times are medians of --repeat repetitions between CUDA
events, after a warm-up. `ratio` is the time of a row over lapidary's time of the same part.
transformers keeps gradients in bf16, lapidary in f32. Needs torch and transformers 5.17.
"""
import argparse
import json
import os
import subprocess
import sys
import time

SMALL_VOCABULARY = 1024
WARM_UP = 3
WARM_TOKENS = 3

# Attention, experts, torch.compile.
MODEL_VARIANTS = {
    "sdpa": ("sdpa", "grouped_mm", False),
    "sdpa+compile": ("sdpa", "grouped_mm", True),
    "eager": ("eager", "grouped_mm", False),
    "flex+compile": ("flex_attention", "grouped_mm", True),
    "sdpa+loop": ("sdpa", "eager", False),
}
HEAD_VARIANTS = ["logits", "logits+compile", "liger", "cut_cross_entropy"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["period", "head", "step", "decode"])
    parser.add_argument("--config", default="26b-a4b", help="as lapidary takes it")
    parser.add_argument("--config-json", help="config.json to use instead of asking lapidary")
    parser.add_argument("--lapidary", help="path of the program; without it transformers alone")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=512, help="decode: tokens of each prompt")
    parser.add_argument("--layers", type=int, help="step, decode: the first so many; default: all")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--recompute", choices=["none", "light", "block"],
                        help="of lapidary; anything but none turns on gradient checkpointing in "
                        "transformers. Default: none, block for step")
    parser.add_argument("--variants", help="comma-separated; default: all")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for each variant")
    parser.add_argument("--jsonl", help="append the rows to this file too")
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # a child's
    options = parser.parse_args()
    if options.recompute is None:
        options.recompute = "block" if options.what == "step" else "none"
    if not options.lapidary and not options.config_json:
        parser.error("give --lapidary, --config-json or both")
    return options


def read_config(options):
    """The text part of config.json."""
    if options.config_json:
        with open(options.config_json, encoding="utf-8") as file:
            config = json.load(file)
    else:
        command = [options.lapidary, "inspect", options.config, "--print-config"]
        config = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    text = dict(config.get("text_config", config))
    text["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    return text


def shorten(text, layers, vocabulary=None):
    """The first layers of a model, as `lapidary bench` shortens it."""
    text = dict(text)
    own = text["num_hidden_layers"] - (text.get("num_kv_shared_layers") or 0)
    text["num_kv_shared_layers"] = max(layers - own, 0)
    text["num_hidden_layers"] = layers
    text["layer_types"] = text["layer_types"][:layers]
    if isinstance(text.get("per_layer_config"), dict):
        kept = {k: v for k, v in text["per_layer_config"].items() if int(k) < layers}
        text["per_layer_config"] = kept
    if vocabulary:
        for key in ("vocab_size", "vocab_size_per_layer_input"):
            text[key] = min(text.get(key, vocabulary), vocabulary)
        text.update(pad_token_id=0, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True)
    return text


def timed(work, repeat, warm_up=WARM_UP):
    """Milliseconds of each repetition, sorted."""
    import torch

    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)


def emit(part, times, tokens, **more):
    import torch

    middle = times[len(times) // 2] if len(times) % 2 else sum(times[len(times) // 2 - 1:][:2]) / 2
    row = {
        "part": part, "ms": middle, "ms_min": times[0], "ms_max": times[-1],
        "ms_p10": times[(len(times) - 1) // 10], "ms_p90": times[(len(times) - 1) * 9 // 10],
        "tokens_per_s": tokens / middle * 1e3, "peak_bytes": torch.cuda.max_memory_allocated(),
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, **more
    }
    print("ROW " + json.dumps(row), flush=True)


def build(model_class, text, variant):
    """A bf16 model with random weights on the GPU."""
    import torch
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    attention, experts, _ = MODEL_VARIANTS[variant]
    config = Gemma4TextConfig.from_dict(text)
    more = {"experts_implementation": experts} if text.get("enable_moe_block") else {}
    with torch.device("cuda"):
        model = model_class._from_config(config, dtype=torch.bfloat16,
                                         attn_implementation=attention, **more)
    with torch.no_grad():  # whatever the class left empty or equal
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, text.get("initializer_range", 0.02))
            else:
                parameter.fill_(1.0)
    return model


def random_ids(rows, cols, vocabulary):
    import torch

    torch.manual_seed(3)
    return torch.randint(1, vocabulary, (rows, cols), device="cuda")


def train_mode(model, options):
    model.train()
    if options.recompute != "none":
        model.gradient_checkpointing_enable()


def run_period(options, text, variant):
    import torch
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

    period = text["layer_types"].index("full_attention") + 1
    text = shorten(text, period, SMALL_VOCABULARY)
    model = build(Gemma4TextModel, text, variant)
    train_mode(model, options)
    run = torch.compile(model) if MODEL_VARIANTS[variant][2] else model
    ids = random_ids(options.batch, options.seq, text["vocab_size"])
    d_hidden = torch.randn(options.batch, options.seq, text["hidden_size"], device="cuda",
                           dtype=torch.bfloat16) * 0.01

    def forward():
        return run(input_ids=ids, use_cache=False).last_hidden_state

    tokens = options.batch * options.seq
    emit("forward", timed(forward, options.repeat), tokens)
    emit("forward and backward", timed(lambda: forward().backward(d_hidden), options.repeat),
         tokens)


def head_loss(variant, cap):
    """A function of (x, w, targets)."""
    import torch
    from torch.nn import functional

    if variant == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(softcap=cap)
        return lambda x, w, targets: fused(w, x, targets)
    if variant == "cut_cross_entropy":
        from cut_cross_entropy import linear_cross_entropy

        return lambda x, w, targets: linear_cross_entropy(x, w, targets, softcap=cap)

    def loss(x, w, targets):
        logits = functional.linear(x, w)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return functional.cross_entropy(logits.float(), targets)

    return torch.compile(loss) if variant == "logits+compile" else loss


def run_head(options, text, variant):
    import torch

    rows, hidden, vocabulary = options.batch * options.seq, text["hidden_size"], text["vocab_size"]
    make = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(rows, hidden, **make).requires_grad_()
    w = (torch.randn(vocabulary, hidden, **make) * 0.02).requires_grad_()
    targets = random_ids(1, rows, vocabulary)[0]
    loss = head_loss(variant, text.get("final_logit_softcapping"))

    def both():
        loss(x, w, targets).backward()

    def forward():
        with torch.no_grad():
            loss(x, w, targets)

    for part, work in (("forward", forward), ("forward and backward", both)):
        work()  # gradients exist from here on
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        times = timed(work, options.repeat)
        extra = torch.cuda.max_memory_allocated() - before  # beside operands and gradients
        emit(part, times, rows, scratch_bytes=extra)


def run_step(options, text, variant):
    import torch
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    model = build(Gemma4ForCausalLM, text, variant)
    train_mode(model, options)
    run = torch.compile(model) if MODEL_VARIANTS[variant][2] else model
    ids = random_ids(options.batch, options.seq, text["vocab_size"])
    tokens = options.batch * options.seq

    def loss():
        model.zero_grad(set_to_none=False)
        run(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    emit("loss and backward", timed(loss, options.repeat), tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        loss()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    emit("step", timed(step, options.repeat), tokens)


def run_decode(options, text, variant):
    import torch
    from transformers import DynamicCache, StaticCache
    from transformers.models.gemma4.modeling_gemma4 import Gemma4ForCausalLM

    model = build(Gemma4ForCausalLM, text, variant).eval()
    compiled = MODEL_VARIANTS[variant][2]
    step = torch.compile(model, mode="reduce-overhead") if compiled else model
    prompt = random_ids(options.batch, options.prompt, text["vocab_size"])
    state = {}

    def advance(run, ids):
        out = run(input_ids=ids, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        state["next"] = out.logits[:, -1].argmax(-1, keepdim=True).clone()

    def prefill():
        total = options.prompt + WARM_TOKENS + options.repeat
        state["cache"] = (StaticCache(config=model.config, max_cache_len=total) if compiled else
                          DynamicCache(config=model.config))
        advance(model, prompt)

    def token():
        advance(step, state["next"])
        state["next"].cpu()  # a token counts when the host knows it

    with torch.no_grad():
        emit("prefill", timed(prefill, 3, 1), options.batch * options.prompt)
        emit("token", timed(token, options.repeat, WARM_TOKENS), options.batch)


def run_child(options):
    run = {"period": run_period, "head": run_head, "step": run_step, "decode": run_decode}
    text = read_config(options)
    if options.layers:
        text = shorten(text, options.layers)
    run[options.what](options, text, options.variant)


def reason_of(errors):
    """The last line of a traceback that names an error."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] or "error:" in line]
    return (named or lines or ["no message"])[-1][:300]


def rows_of(command, timeout, mark):
    """The JSON lines of a program behind a mark, and a row more when it did not end well."""
    failure = None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        output = done.stdout
        if done.returncode != 0:
            failure = f"exit {done.returncode}: {reason_of(done.stderr)}"
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode(errors="replace")
        failure = f"took longer than {timeout:.0f} s"
    except OSError as error:
        output, failure = "", str(error)
    lines = [line for line in output.splitlines() if line.startswith(mark + "{")]
    rows = [json.loads(line[len(mark):]) for line in lines]
    if failure or not rows:
        rows.append({"part": "-", "error": failure or "printed nothing"})
    return rows


def lapidary_rows(options):
    command = [options.lapidary, "bench", options.what, "--config",
               options.config_json or options.config, "--device", "cuda", "--dtype", "bf16",
               "--batch", str(options.batch), "--repeat", str(options.repeat)]
    if options.what == "decode":
        command += ["--prompt", str(options.prompt)]
    else:
        command += ["--seq", str(options.seq)]
    if options.what in ("period", "step"):
        command += ["--recompute", options.recompute]
    if options.layers and options.what in ("step", "decode"):
        command += ["--layers", str(options.layers)]
    return rows_of(command, options.timeout, "")


def variant_rows(options, variant):
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--variant", variant]
    return rows_of(command, options.timeout, "ROW ")


def variants_of(options):
    every = HEAD_VARIANTS if options.what == "head" else list(MODEL_VARIANTS)
    if options.what != "head" and not read_config(options).get("enable_moe_block"):
        every.remove("sdpa+loop")
    if options.variants is None:
        return every
    chosen = [name.strip() for name in options.variants.split(",")]
    unknown = [name for name in chosen if name not in every]
    if unknown:
        sys.exit(f"reference.py: no variant {unknown}; there are {every}")
    return chosen


def print_row(row):
    if "error" in row:
        print(f"{row['program']:<13}{row['variant']:<18}{row['part']:<22}{row['error']}")
        return
    tflops, ratio = row.get("tflops"), row.get("ratio")
    print(f"{row['program']:<13}{row['variant']:<18}{row['part']:<22}{row['ms']:>10.3f}"
          f"{row['ms_p10']:>10.3f}{row['ms_p90']:>10.3f}{row['tokens_per_s']:>12.0f}"
          f"{'-' if tflops is None else f'{tflops:.1f}':>9}{row['peak_bytes'] / 2**30:>10.2f}"
          f"{'-' if ratio is None else f'{ratio:.2f}':>8}", flush=True)


def run_parent(options):
    print(f"{'program':<13}{'variant':<18}{'part':<22}{'ms':>10}{'p10':>10}{'p90':>10}"
          f"{'tokens/s':>12}{'TFLOP/s':>9}{'peak GiB':>10}{'ratio':>8}")
    ours, lines = {}, []

    def finish(program, variant, rows):
        for row in rows:
            row.update(program=program, variant=variant, what=options.what, config=options.config,
                       batch=options.batch, recompute=options.recompute, time=time.time())
            mine = ours.get(row["part"])
            if mine and "ms" in row:
                row["ratio"] = row["ms"] / mine["ms"]
                row["tflops"] = mine["tflops"] * mine["ms"] / row["ms"]  # the same work
            lines.append(json.dumps(row))
            print_row(row)

    if options.lapidary:
        rows = lapidary_rows(options)
        ours.update({row["part"]: row for row in rows if "ms" in row})
        finish("lapidary", "", rows)
    for variant in variants_of(options):
        finish("transformers", variant, variant_rows(options, variant))
    print("\n" + "\n".join(lines))
    if options.jsonl:
        with open(options.jsonl, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    arguments = parse_arguments()
    if arguments.variant:
        run_child(arguments)
    else:
        run_parent(arguments)
