"""From a registered version to its bundle: the story of an export, top to bottom."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry.bundle import CERTIFICATE, GOLDEN, PROFILE, SIGNATURE, TOLERANCE, VARIANTS, Bundle, canonical_json, write_manifest
from registry.certificate import Certificate
from registry.errors import UsageError
from registry.gates import fastest_passing
from registry.names import ModelVersion
from registry.ports import ModelRegistry, VersionInfo
from registry.transforms import read_transforms
from training.data.batches import Array
from training.evaluate import predict
from training.export.catalog import EXPORTERS, exporters, unfit
from training.export.certificate.baseline import baseline_of
from training.export.certificate.certify import NUM_GOLDEN, Measured, certify, failed_export
from training.export.certificate.reference import Reference
from training.export.exporter import ExportContext, Exporter, Limits
from training.export.metrics import numbers, verdict_line
from training.export.profile import build_profile
from training.export.report.page import REPORT, write_report
from training.importing.mlflow_version import adopt_version
from training.interface import infer_signature
from training.recipe import ExportConfig, Target
from training.source.interface import Source
from training.source.opening import open_source
from training.source.serving import copy_serving
from training.tracking import SOURCE, SOURCE_PATH_TAG, SOURCE_TAG, Tracking

CHOSEN_TAG = "modelway.variant"  # tag of a version: its fastest variant that passed in the newest export
NONE_PASSED = "none"
_EXAMPLE_ROWS = 4

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export made.

    Attributes:
        certificates: Variant -> its certificate, in the order in which they were made; passing and failing ones.
        chosen: The fastest variant that passed (median at batch 1); None if none did.
        left_out: Variant -> why it does not fit the model or the target.
        seconds: Variant -> how long it took to make and to measure; `model` is the eager model's share.
        bundle: The verified bundle on this machine, in the working directory of the export.
        report: The HTML report, beside it.
    """

    model_version: ModelVersion
    certificates: Mapping[str, Certificate]
    chosen: str | None
    left_out: Mapping[str, str]
    seconds: Mapping[str, float]
    bundle: Bundle
    report: Path


def export_version(
    model_version: ModelVersion,
    registry: ModelRegistry,
    *,
    tracking_uri: str,
    workdir: Path,
    artifact_root: str | None = None,
    variants: Sequence[str] | None = None,
    target: Target | None = None,
    accuracy_drop: float | None = None,
    latency_p99_ms: float | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a version, certify every variant and attach the bundle to the version.

    A variant that fails stays in the bundle with its failing certificate: gates refuse it, and people can look at it.

    Args:
        tracking_uri: The MLflow store that has the version's run.
        workdir: Directory on this machine in which the bundle is made, in a new directory of its own.
        artifact_root: Where a new experiment keeps its artifacts, for a version that no run made; None for the store's default.
        variants: Which ones; None for those of the recipe, or all that fit where it names none.
        target: The device that they are for; None for that of the recipe.
        accuracy_drop: Budget; None for that of the recipe.
        latency_p99_ms: Goal for one row; None for that of the recipe.
        progress: Called with one line per variant.

    Raises:
        NotFound: No such version or variant.
        UsageError: The version's code or data cannot be had here, or Modelway did not make it and it has no signature or example.
        Refused: Modelway did not make the version, and it is pickled.
        Corrupt: The version's files or its data are not those that were registered.
        Unavailable: MLflow does not answer.
    """
    say = progress or (lambda line: None)
    tracking = Tracking(tracking_uri, artifact_root=artifact_root)
    info = _with_source(registry.version(model_version), registry, tracking, say)
    workdir.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f"{model_version.model}-{model_version.version}-", dir=workdir))

    bundle, report = root / "bundle", root / "report" / REPORT
    measured: dict[str, Measured] = {}
    clock = _Stopwatch()
    with tempfile.TemporaryDirectory(prefix="export-", dir=root) as scratch:
        source = _source(info, tracking, Path(scratch) / "source")
        config = _overridden(
            source.export,
            variants=None if variants is None else tuple(variants),
            target=target,
            accuracy_drop=accuracy_drop,
            latency_p99_ms=latency_p99_ms,
        )
        named = None if config.variants is None else exporters(config.variants)  # a wrong name is refused before anything is measured
        reference, context = measure_eager(source, config, scratch=Path(scratch))
        clock.lap("model")
        wanted, left_out = _fitting(named, source, context, model_version)
        for name, reason in left_out.items():
            say(f"{name}: left out, {reason}")
        for exporter in wanted:
            directory = bundle / VARIANTS / exporter.name
            measured[exporter.name] = export_variant(
                exporter, source, version=model_version, config=config, reference=reference, context=context, directory=directory
            )
            say(f"{verdict_line(measured[exporter.name].certificate)}, {clock.lap(exporter.name):.1f} s")
        opened = _seal(bundle, reference, measured, source.serving)

    certificates = {name: item.certificate for name, item in measured.items()}
    chosen = fastest_passing(certificates)
    report.parent.mkdir()
    outputs = {name: item.outputs for name, item in measured.items()}
    write_report(report, version=model_version, certificates=certificates, chosen=chosen, reference=reference, outputs=outputs)
    registry.attach_bundle(model_version, opened.root)
    registry.set_tag(model_version, CHOSEN_TAG, chosen or NONE_PASSED)
    assert info.run_id is not None  # _with_source has seen to it
    tracking.log_metrics(info.run_id, numbers(certificates))
    tracking.log_directory(info.run_id, report.parent, f"export/{model_version.model}-{model_version.version}")
    return ExportReport(
        model_version=model_version,
        certificates=certificates,
        chosen=chosen,
        left_out=left_out,
        seconds=clock.laps_s,
        bundle=opened,
        report=report,
    )


def _fitting(
    named: tuple[Exporter, ...] | None, source: Source, context: ExportContext, version: ModelVersion
) -> tuple[tuple[Exporter, ...], dict[str, str]]:
    """The exporters to use, and which of all were left out and why. Raises UsageError for one that was named and does not fit."""
    left_out = unfit(named or EXPORTERS, source.model, context)
    if named is not None and left_out:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UsageError(f"variants that do not fit {version} ({reasons})", "Leave them out, or name none to get all that fit.")
    return tuple(exporter for exporter in named or EXPORTERS if exporter.name not in left_out), left_out


def export_variant(
    exporter: Exporter,
    source: Source,
    *,
    version: ModelVersion,
    config: ExportConfig,
    reference: Reference,
    context: ExportContext,
    directory: Path,
) -> Measured:
    """Make one variant in the new directory, certify it from its files and write the certificate beside them."""
    directory.mkdir(parents=True)
    try:
        exporter.export(source.model, context, directory)
        inspection = exporter.inspect(directory, source.model, context)
    except Exception as error:  # exporters and the user's model may raise anything; the certificate says what
        measured = failed_export(error, version=version, source_sha256=source.weights_sha256, variant=exporter.name, reference=reference)
    else:
        measured = certify(
            directory,
            version=version,
            source_sha256=source.weights_sha256,
            variant=exporter.name,
            reference=reference,
            limits=_limits(exporter, config),
            accuracy_drop=config.accuracy_drop,
            inspection=inspection,
            latency_p99_ms=config.latency_p99_ms,
            baseline=baseline_of(source.model, context),
            target=context.target,
        )
    (directory / CERTIFICATE).write_text(canonical_json(measured.certificate.to_json()), encoding="utf-8")
    return measured


def _with_source(info: VersionInfo, registry: ModelRegistry, tracking: Tracking, say: Progress) -> VersionInfo:
    """The version, after it got a source if Modelway did not make it."""
    if SOURCE_TAG in info.tags:
        return info
    adopt_version(info.model_version, tracking=tracking, progress=say)
    return registry.version(info.model_version)


def _source(info: VersionInfo, tracking: Tracking, into: Path) -> Source:
    assert info.run_id is not None  # _with_source has seen to it
    path = info.tags.get(SOURCE_PATH_TAG, SOURCE)
    return open_source(tracking.download(info.run_id, path, into), expected_sha256=info.tags[SOURCE_TAG])


def _overridden(config: ExportConfig, **values: Any) -> ExportConfig:
    """The recipe's settings with those values in their place that are not None."""
    return dataclasses.replace(config, **{key: value for key, value in values.items() if value is not None})


def measure_eager(source: Source, config: ExportConfig, *, scratch: Path) -> tuple[Reference, ExportContext]:
    """What the version's own model answers on rows to measure on, and what exporters work with."""
    evaluation = source.evaluation(config)
    rows = evaluation.held_out

    def ask(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return predict(source.model, inputs, outputs=config.outputs, task=source.task)

    outputs = ask(rows.inputs)
    example = {name: torch.from_numpy(array) for name, array in rows.take(slice(0, _EXAMPLE_ROWS)).items()}
    signature = infer_signature(
        example,
        {name: torch.from_numpy(array[:_EXAMPLE_ROWS]) for name, array in outputs.items()},
        dynamic=config.dynamic,
        ask=lambda inputs: {name: torch.from_numpy(array) for name, array in ask({n: t.numpy() for n, t in inputs.items()}).items()},
    )
    return (
        Reference(
            signature=signature,
            rows=rows,
            outputs=outputs,
            task=source.task,
            labelled=evaluation.labelled,
            ask=ask,
            origin=evaluation.origin,
        ),
        ExportContext(
            signature=signature,
            example=example,
            calibration=evaluation.calibration,
            task=source.task,
            accuracy_drop=config.accuracy_drop,
            target=config.target,
            given_graph=source.given_graph,
            scratch=scratch,
        ),
    )


def _limits(exporter: Exporter, config: ExportConfig) -> Limits:
    """The exporter's limits under the budget, or in the recipe's proportion to them."""
    limits = exporter.limits.within(config.accuracy_drop)
    wanted = config.max_relative_error.get(exporter.name)
    if wanted is None:
        return limits
    return dataclasses.replace(limits, max_error=wanted, mean_error=limits.mean_error * wanted / limits.max_error)


class _Stopwatch:
    """Where the time of an export goes."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps_s: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """Seconds since the last lap, recorded under that name."""
        now = time.monotonic()
        self.laps_s[name], self._last = round(now - self._last, 2), now
        return self.laps_s[name]


def _seal(bundle: Path, reference: Reference, measured: Mapping[str, Measured], serving: Path | None) -> Bundle:
    """Write what the variants share, the manifest last, and open the bundle as its readers will."""
    if serving is not None:
        read_transforms(serving, reference.signature)
        copy_serving(serving, bundle)
    golden = slice(0, NUM_GOLDEN)
    (bundle / SIGNATURE).write_text(canonical_json(reference.signature.to_json()), encoding="utf-8")
    tolerance = {variant: {name: dict(t) for name, t in item.tolerance.items()} for variant, item in measured.items()}
    (bundle / TOLERANCE).write_text(canonical_json(tolerance), encoding="utf-8")
    (bundle / PROFILE).write_text(canonical_json(build_profile(reference.task, reference.rows, reference.outputs)), encoding="utf-8")
    arrays = {f"in/{name}": array for name, array in reference.rows.take(golden).items()}
    arrays |= {f"out/{name}": array[golden] for name, array in reference.outputs.items()}
    np.savez(bundle / GOLDEN, allow_pickle=False, **arrays)
    write_manifest(bundle)
    return Bundle.open(bundle)
