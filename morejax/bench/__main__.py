"""`python -m morejax.bench step|iteration|sampler|shop --size S --json`: one line for each measurement."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from morejax.bench import iteration, sampler, shop, step
from morejax.bench.plots import plot_sweep
from morejax.bench.sizes import SIZES


def parser() -> argparse.ArgumentParser:
    """Flags of all benchmarks."""
    common = argparse.ArgumentParser(add_help=False)
    shown = [name for name in SIZES if name != "tiny"]
    common.add_argument("--size", choices=tuple(SIZES), default="S", metavar="{" + ",".join(shown) + "}")
    common.add_argument("--rounds", type=int, default=7, help="counted repeats of each program")
    common.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    common.add_argument("--scan", action="store_true", help="run layers by lax.scan instead of unrolling them")
    common.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    learning = argparse.ArgumentParser(add_help=False, parents=[common])
    learning.add_argument("--minibatches", type=int, default=4, help="updates of the one epoch")
    learning.add_argument("--kl", choices=("full", "k2", "k3", "none"), default="k3")
    root = argparse.ArgumentParser(prog="python -m morejax.bench", description=__doc__)
    benches = root.add_subparsers(dest="bench", required=True)
    of_step = benches.add_parser("step", parents=[learning], help="train_step against plain PPO")
    of_step.add_argument("--variants", nargs="+", choices=step.VARIANTS, default=["plain", "more", "exact"])
    of_step.add_argument("--critic", choices=("shared", "own"), default="shared")
    of_step.add_argument("--norm-at", choices=("virtual", "final_norm", "last_layer"), default="virtual")
    of_step.add_argument("--accumulation-steps", type=int, default=1, help="slices of a minibatch")
    of_step.add_argument("--profile", action="store_true", help="time each operation of the variants instead")
    of_step.add_argument("--plot", type=Path, metavar="DIR", help="sweep batch and depth instead, and draw them there")
    of_step.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64], help="of --plot")
    of_step.add_argument("--depths", nargs="+", type=int, default=[4, 8, 16, 48], help="of --plot")
    of_iteration = benches.add_parser("iteration", parents=[learning], help="a whole iteration")
    of_iteration.add_argument("--critic", nargs="+", choices=iteration.CRITICS, default=list(iteration.CRITICS))
    of_iteration.add_argument("--forms", nargs="+", choices=iteration.FORMS, default=list(iteration.FORMS))
    of_sampler = benches.add_parser("sampler", parents=[common], help="replies, beside transformers.generate")
    of_sampler.add_argument("--engines", nargs="+", choices=sampler.ENGINES, default=list(sampler.ENGINES))
    of_shop = benches.add_parser("shop", parents=[common], help="judged replies and complete dialogues a second")
    of_shop.add_argument("--parts", nargs="+", choices=shop.PARTS, default=list(shop.PARTS))
    of_shop.add_argument("--dialogues", type=int, default=256, help="played by each agent")
    of_shop.add_argument("--sequences", type=int, default=256, help="replies judged at once")
    return root


def main(arguments: Sequence[str]) -> int:
    """Run a benchmark; records are printed as they come."""
    flags = parser().parse_args(arguments)
    shared = {name: getattr(flags, name) for name in ("size", "rounds", "dtype", "scan")}
    if flags.bench == "sampler":
        _show(sampler.run(sampler.SamplerBench(engines=tuple(flags.engines), **shared)), flags.json)
        return 0
    if flags.bench == "shop":
        counts = {"dialogues": flags.dialogues, "sequences": flags.sequences}
        _show(shop.run(shop.ShopBench(parts=tuple(flags.parts), **counts, **shared)), flags.json)
        return 0
    shared |= {"minibatches": flags.minibatches, "kl": flags.kl}
    if flags.bench == "iteration":
        bench = iteration.IterationBench(critics=tuple(flags.critic), forms=tuple(flags.forms), **shared)
        _show(iteration.run(bench), flags.json)
        return 0
    bench = step.StepBench(
        variants=tuple(flags.variants),
        critic=flags.critic,
        norm_at=flags.norm_at,
        accumulation_steps=flags.accumulation_steps,
        **shared,
    )
    if flags.profile:
        _show(step.profiles(bench), flags.json)
        return 0
    if flags.plot is None:
        _show(step.run(bench), flags.json)
        return 0
    flags.plot.mkdir(parents=True, exist_ok=True)
    records = _show(step.sweep(bench, tuple(flags.batches), tuple(flags.depths)), flags.json)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (flags.plot / f"sweep-{flags.size}.jsonl").write_text(lines)
    print(plot_sweep(records, flags.plot / f"sweep-{flags.size}.png"), file=sys.stderr)
    return 0


def _show(records: Iterable[dict[str, Any]], as_json: bool) -> list[dict[str, Any]]:
    """Print records, each as soon as it is there."""
    shown = []
    for record in records:
        print(json.dumps(record) if as_json else _line(record), flush=True)
        shown.append(record)
    return shown


def _line(record: dict[str, Any]) -> str:
    """A record for people."""
    if record["bench"] == "profile":
        return (
            f"{record['ms']:9.2f} ms {record['share']:6.1%} x{record['runs']:<4} {record['op']:32} {record['source']}"
        )
    if record["bench"] == "sampler":
        against = f"  {record['ratio']:.2f} x transformers" if "ratio" in record else ""
        return (
            f"{record['size']}/{record['engine']:14} {record['ms']:10.1f} ms  {record['tokens_per_s']:9.1f} tokens/s"
            f"  {record['floor_share']:.0%} of the floor ({record['decode_bound']}){against}"
        )
    if record["bench"] == "shop":
        speeds = [f"{key} {value}" for key, value in record.items() if "per_" in key]
        return f"shop/{record['part']:12} " + "  ".join(speeds)
    name = "/".join(str(record[key]) for key in ("size", "variant", "critic", "form") if key in record)
    parts = [
        f"{name:24} {record['ms']:10.1f} ms  {record['flops'] / 1e9:9.2f} GFLOP"
        f"  {record['temp_bytes'] / 2**20:9.1f} MiB  compiled in {record['compile_s']:.1f} s"
    ]
    parts += [f"{key} {record[key]}" for key in ("layers", "sequences", "mfu", "hfu", "tokens_per_s") if key in record]
    parts += [f"{key} {value}" for key, value in record.items() if key.endswith("_ratio")]
    return "  ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
