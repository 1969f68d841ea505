"""export: a version's variants, each measured against the model, as one table."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modelway.cli.output import JsonOption, Row, print_json, print_rows, say
from registry.errors import Refused, UsageError
from registry.names import parse_model_version

if TYPE_CHECKING:
    from registry.certificate import Certificate


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(export)


def export(
    model_version: Annotated[str, typer.Argument(metavar="MODEL/VERSION", help="For example digits/3.")],
    *,
    variants: Annotated[
        str | None, typer.Option(help="Comma-separated; by default what the recipe lists, or all that fit the model and the target.")
    ] = None,
    target: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="The device that the variants are for; by default the recipe's, else the CPU.")
    ] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option(min=0, max=1, help="Accuracy that a variant may lose; by default the recipe's.")
    ] = None,
    latency_p99_ms: Annotated[
        float | None, typer.Option(min=0, help="How long one row may take at the 99th percentile; by default the recipe's goal, or none.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the HTML report here too; it is always logged to the version's run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a version to its variants, measure each against the model it came from, and choose the fastest one that passes.

    \b
    modelway export digits/3
    modelway export digits/3 --variants onnx-fp32,onnx-int8-static --accuracy-drop 0.01 --latency-p99-ms 2
    """
    if report is not None and not report.parent.is_dir():
        raise UsageError(f"no such directory for the report ({report.parent})", "Make it, or name another file.")
    from modelway.composition import open_registry, open_tracking
    from modelway.settings import load_settings
    from training.export.stage import export_version

    version, settings = parse_model_version(model_version), load_settings()
    tracking = open_tracking(settings)
    with tempfile.TemporaryDirectory(prefix="modelway-export-") as workdir:
        made = export_version(
            version,
            open_registry(tracking),
            tracking_uri=tracking.uri,
            workdir=Path(workdir),
            artifact_root=tracking.artifact_root,
            variants=[name.strip() for name in variants.split(",")] if variants else None,
            target=target,
            accuracy_drop=accuracy_drop,
            latency_p99_ms=latency_p99_ms,
            progress=say,
        )
        if report is not None:
            report.write_bytes(made.report.read_bytes())
    if as_json:
        print_json(
            {
                "version": str(version),
                "chosen": made.chosen,
                "left_out": dict(made.left_out),
                "seconds": dict(made.seconds),
                "certificates": [certificate.to_json() for certificate in made.certificates.values()],
            }
        )
    else:
        print_rows([_row(certificate, chosen=name == made.chosen) for name, certificate in made.certificates.items()], as_json=False)
    if made.chosen is None:
        reasons = [f"{name}: {'; '.join(c.failures)}" for name, c in made.certificates.items()]
        raise Refused(f"no variant of {version} passes", "It cannot be promoted. Train or export again.", reasons=reasons)
    say(f"Next: modelway promote {version}")


def _row(certificate: Certificate, *, chosen: bool) -> Row:
    """One variant. Latencies are medians of a call; the change in quality is with its 95% interval."""
    facts = certificate.facts
    latency: dict[str, Any] = facts.get("latency", {})
    quality = str(facts.get("quality", "quality"))
    numbers: dict[str, Any] = facts.get(quality, {})
    one = latency.get("batch_1", {})
    return {
        "": "*" if chosen else "",
        "variant": certificate.variant,
        "kB": round(facts["size_bytes"] / 1000) if "size_bytes" in facts else None,
        "size": f"{facts['size_ratio']:.0%}" if "size_ratio" in facts else None,
        "max error": next((c.value for c in certificate.checks if c.name == "batch/32/max_relative_error"), None),
        "quality": f"{quality} {numbers['variant']:.4f}" if numbers.get("variant") is not None else None,
        "change": _change(numbers),
        "p50/p99 ms, batch 1": f"{one['p50_ms']:.3g}/{one['p99_ms']:.3g}" if one else None,
        "batch 8": latency.get("batch_8", {}).get("p50_ms"),
        "batch 32": latency.get("batch_32", {}).get("p50_ms"),
        "rows/s": round(max(entry["rows_per_s"] for entry in latency.values())) if latency else None,
        "ran on": facts.get("provider"),
        "verdict": "pass" if certificate.passed else "fail: " + "; ".join(certificate.failures),
    }


def _change(numbers: dict[str, Any]) -> str | None:
    if numbers.get("change") is None:
        return None
    low, high = numbers["interval"]
    interval = f" ({low:+.4f}..{high:+.4f})" if low is not None and high is not None else ""
    return f"{numbers['change']:+.4f}{interval}"
