"""The `lipsformer` command: a thin table of commands; the work is in the modules that each imports when it is called.

Exit status: 0 done, 1 a gate failed or a training diverged, 2 bad input or usage (one line on stderr, never a
traceback), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lipsformer.errors import GateError, InputError, LipsFormerError

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train LipsFormer, export it with proof, and serve it.",
)

NO_MEMORY = "not enough memory for these settings; choose a smaller model, batch or image"

Model = Annotated[
    str,
    typer.Argument(help="Checkpoint (.safetensors), .onnx file, bundle folder, or lipsformer_cifar10, which we ship."),
]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Folder of class folders or tar shards, URL of shards, or built-in dataset."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[
    str | None, typer.Option(help="Which of a bundle's precisions to run; by default its first.", show_default=False)
]


@app.command()
def models(as_json: Json = False) -> None:
    """List the variants: parameters, multiply-adds, image size."""
    from lipsformer.models import summarise
    from lipsformer.variants import ALIASES, VARIANTS

    rows = [summarise(name) for name in VARIANTS]
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    typer.echo(f"{'model':24}{'parameters':>14}{'multiply-adds':>16}{'image size':>12}")
    for row in rows:
        typer.echo(f"{row.name:24}{row.parameters:>14,}{row.multiply_adds / 1e9:>14.3f} G{row.image_size:>12}")
    for alias, name in ALIASES.items():
        typer.echo(f"{alias} is short for {name}")


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="Built-in dataset: fruit, cifar10 or fashion-mnist.")],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    source: Annotated[Path | None, typer.Option(help="The dataset's file, where you already have it.")] = None,
) -> None:
    """Fetch a built-in dataset as class folders."""
    from lipsformer.fetch import fetch_dataset

    typer.echo(fetch_dataset(name, output, source=source))


@app.command()
def train(
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Variant, see `lipsformer models`, or checkpoint to start from; by default the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Packaged recipe or TOML file; by default `default`, or the resumed run's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs, instead of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable.")
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="[auto|never]", help="auto: go on with the same run, if the folder holds it.")
    ] = "auto",
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write events for TensorBoard.")] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only check how high the learning rate may be; trains nothing.")
    ] = False,
) -> None:
    """Train a model; writes checkpoints, metrics and plots into the run folder."""
    from lipsformer.fetch import resolve_dataset
    from lipsformer.train import check_rate, run_training

    folder = resolve_dataset(dataset)
    choices: dict[str, Any] = {"model": model, "recipe": recipe, "epochs": epochs, "overrides": overrides or ()}
    if find_lr:
        found = check_rate(folder, output=output, device=device, **choices)
        typer.echo(
            f"suggested learning rate {found['suggested']:g}, where the loss falls fastest; lowest at "
            f"{found['lowest_loss_at']:g}; {output / 'learning_rate.png'} shows it"
        )
        return
    run_training(folder, output=output, resume=_resumes(resume), device=device, tensorboard=tensorboard, **choices)


@app.command()
def stability(
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Folder to write; called again, it goes on where it was stopped.")],
    model: Annotated[str, typer.Option(help="Variant, see `lipsformer models`.")] = "lipsformer_cswin_nano",
    baseline: Annotated[str, typer.Option(help="Variant to compare it with.")] = "cswin_nano",
    learning_rates: Annotated[
        str, typer.Option(help="Learning rates, with commas between them.")
    ] = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1",
    seeds: Annotated[int, typer.Option(help="Trainings of each model at each rate.")] = 1,
    recipe: Annotated[str, typer.Option(help="Packaged recipe or TOML file.")] = "default",
    epochs: Annotated[int | None, typer.Option(help="Epochs, instead of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting for both; repeatable.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trainings at once; by default one per core, on a GPU one.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a model and a plain one over a grid of learning rates without warm-up, and compare."""
    from lipsformer.fetch import resolve_dataset
    from lipsformer.train.stability import measure_stability

    report = measure_stability(
        resolve_dataset(dataset),
        output=output,
        model=model,
        baseline=baseline,
        learning_rates=learning_rates,
        seeds=seeds,
        recipe=recipe,
        epochs=epochs,
        overrides=overrides or (),
        jobs=jobs,
        device=device,
    )
    if as_json:
        _print_json(report)
    else:
        typer.echo((output / "stability.md").read_text(encoding="utf-8"))


@app.command("eval")
def evaluate_model(
    model: Model,
    dataset: Data,
    split: Annotated[str | None, typer.Option(help="Split folder; by default test, else val.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write a report to: classes, confusion matrix, worst mistakes.")
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Measure a model's accuracy on labelled images, overall and by class."""
    from lipsformer.datasets import open_labelled
    from lipsformer.evaluation import evaluate, render
    from lipsformer.fetch import resolve_dataset
    from lipsformer.outputs import publish_directory
    from lipsformer.prediction import load_predictor

    predictor = load_predictor(model, device, precision)
    images = open_labelled(resolve_dataset(dataset), predictor.classes, split)
    with contextlib.nullcontext() if output is None else publish_directory(output) as folder:
        result = evaluate(predictor, images)
        if folder is not None:
            from lipsformer.report.write import write_report

            title = f"{model} on {Path(dataset).name}"
            write_report(folder, result.outcomes, images, result.classes, predictor.preprocessing, title)
    if as_json:
        _print_json(result.to_dict())
        return
    typer.echo(render(result))
    if output is not None:
        typer.echo(f"\nReport: {output}")


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top_k: Annotated[int, typer.Option(help="Classes to show for each image.")] = 5,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Classify image files."""
    from lipsformer.prediction import load_predictor

    results = load_predictor(model, device, precision).predict(images, top_k)
    if as_json:
        _print_json(
            [
                {"image": str(image), "predictions": [dataclasses.asdict(p) for p in predictions]}
                for image, predictions in zip(images, results, strict=True)
            ]
        )
        return
    for image, predictions in zip(images, results, strict=True):
        typer.echo(image)
        for prediction in predictions:
            typer.echo(f"  {prediction.score:7.2%}  {prediction.label}")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.safetensors) to export, or lipsformer_cifar10.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; it must not exist.")],
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 and int8, with commas between them; the first is the one that is run.")
    ] = "fp32",
    calibration: Annotated[
        str | None, typer.Option(help="Photos to measure int8's scales on: folder, shards or built-in dataset.")
    ] = None,
    parity_data: Annotated[
        str | None,
        typer.Option(help="Photos for the parity gate; by default --calibration's, else those that the package ships."),
    ] = None,
    parity_images: Annotated[int, typer.Option(help="How many of them, evenly spread.")] = 256,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="PRECISION.FIGURE=NUMBER", help="Change a limit of the parity gate; repeatable."),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines for this machine's GPU.")] = False,
    trt_rtx: Annotated[
        bool, typer.Option("--trt-rtx", help="Build engines for TensorRT for RTX; proved only where a GPU runs them.")
    ] = False,
    trt_check: Annotated[
        bool, typer.Option("--trt-check", help="Have TensorRT for RTX build every graph; needs no GPU.")
    ] = False,
    workspace: Annotated[
        int | None, typer.Option(help="MiB of GPU memory for a layer of an engine; by default all there is.")
    ] = None,
    hardware_compatibility: Annotated[
        bool, typer.Option("--hardware-compatibility", help="TensorRT engines for every GPU from Ampere on; slower.")
    ] = False,
    fold: Annotated[bool, typer.Option(help="Fold scales, norms and biases into the weights.")] = True,
    max_batch: Annotated[int, typer.Option(help="Largest batch to prove and serve.")] = 16,
    triton: Annotated[
        Path | None, typer.Option(help="Also write a model repository for NVIDIA Triton; it must not exist.")
    ] = None,
    bentoml: Annotated[
        str | None, typer.Option(metavar="NAME[:VERSION]", help="Also put the bundle into BentoML's model store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to a bundle, if every file of it answers as the checkpoint does."""
    from lipsformer.console import say
    from lipsformer.export import ExportSettings, export_bundle, read_thresholds, write_triton
    from lipsformer.outputs import publish_directory

    settings = ExportSettings(
        precisions=tuple(name.strip() for name in precision.split(",")),
        calibration=_dataset(calibration),
        parity_data=_dataset(parity_data),
        parity_images=parity_images,
        thresholds=read_thresholds(threshold or ()),
        trt=trt,
        trt_rtx=trt_rtx,
        trt_check=trt_check,
        workspace=None if workspace is None else workspace * 2**20,
        hardware_compatibility=hardware_compatibility,
        fold=fold,
        max_batch=max_batch,
    )
    if bentoml is not None:
        from lipsformer.model_store import check_tag, register_bundle

        check_tag(bentoml)
    with contextlib.nullcontext() if triton is None else publish_directory(triton) as repository:
        manifest = export_bundle(checkpoint, output, settings)
        if repository is not None:
            say(f"{triton}: a model repository for Triton with {', '.join(write_triton(output, repository))}")
    if bentoml is not None:
        say(f"in BentoML's model store: `lipsformer serve bentoml:{register_bundle(output, bentoml)}`")
    if as_json:
        _print_json(dataclasses.asdict(manifest))
        return
    typer.echo((output / "parity.md").read_text(encoding="utf-8"))
    typer.echo(f"Bundle: {output}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder to verify, on the machine that will serve it.")],
    dataset: Annotated[
        str | None, typer.Option("--data", help="More photos to compare on; needs --checkpoint.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint that the bundle was made from, to compare with it anew.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto: all that work here; cpu; or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Prove a bundle on this machine: hashes, and every file's answers in every runtime that works here."""
    from lipsformer.export import verify_bundle

    found = verify_bundle(bundle, checkpoint=checkpoint, data=_dataset(dataset), device=device)
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.to_text())
    if found.failures:
        raise GateError(f"{bundle}: {'; '.join(found.failures)}")


@app.command()
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Checkpoints, .onnx files, engines, or bundles: all in them that can run."
        ),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Rounds; in each every model has a turn at every batch size.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of a turn.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write table, JSON and plot to.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure models beside each other: latency, throughput, memory, and how equal they answer."""
    from lipsformer.benchmark import measure_speed, parse_batches, render, write_report
    from lipsformer.outputs import publish_directory

    batches = parse_batches(batch)
    with contextlib.nullcontext() if output is None else publish_directory(output) as folder:
        report = measure_speed(models, batches=batches, rounds=rounds, seconds=seconds, threads=threads, device=device)
        if folder is not None:
            write_report(report, folder)
    if as_json:
        _print_json(report.to_dict())
    else:
        typer.echo(render(report))


@app.command()
def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint (.pth) of the official code's Swin form.")],
    output: Annotated[Path, typer.Option(help="Checkpoint (.safetensors) to write.")],
    image_size: Annotated[
        int | None, typer.Option(help="Pixels along a side, where the checkpoint leaves it open.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one to a line or a JSON list; by default 'class 0' and so on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert an official checkpoint, without running anything in it."""
    from lipsformer.console import printable
    from lipsformer.convert import convert as convert_official

    conversion = convert_official(official, output, image_size=image_size, classes=classes)
    if as_json:
        _print_json(dataclasses.asdict(conversion))
    else:
        typer.echo(printable(str(conversion)))


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="Bundle folder; or a checkpoint or lipsformer_cifar10, which is exported first.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
    workers: Annotated[
        int, typer.Option(envvar="LIPSFORMER_WORKERS", help="Server processes; one for each GPU or few cores.")
    ] = 1,
    device: Annotated[str, typer.Option(envvar="LIPSFORMER_DEVICE", help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(envvar="LIPSFORMER_PRECISION", help="Which of the bundle's precisions; by default its first."),
    ] = None,
) -> None:
    """Serve a model over HTTP: POST /classify, and a page to drop photos on at /."""
    from lipsformer.pretrained import resolve_model
    from lipsformer.serving import serve as serve_bundle

    bundle = resolve_model(model)
    if bundle.suffix == ".safetensors":
        from lipsformer.export import cached_bundle

        bundle = cached_bundle(bundle)
    serve_bundle(bundle, host=host, port=port, workers=workers, device=device, precision=precision)


@app.command()
def lipschitz(
    model: Annotated[str, typer.Argument(help="Checkpoint (.safetensors) to measure, or lipsformer_cifar10.")],
    dataset: Annotated[
        str | None, typer.Option("--data", help="Images to measure at; by default the photos that the package ships.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images to measure at, evenly chosen.")] = 4,
    output: Annotated[Path | None, typer.Option(help="Folder to write table, JSON and plot to.")] = None,
    as_json: Json = False,
) -> None:
    """Bound how much a model's answers can change with its input, and measure how much they do."""
    from lipsformer.fetch import resolve_dataset
    from lipsformer.lipschitz import measure_lipschitz, render, write_report
    from lipsformer.outputs import publish_directory
    from lipsformer.samples import SAMPLES

    with contextlib.nullcontext() if output is None else publish_directory(output) as folder:
        report = measure_lipschitz(model, SAMPLES if dataset is None else resolve_dataset(dataset), images)
        if folder is not None:
            write_report(report, folder)
    if as_json:
        _print_json(report.to_dict())
    else:
        typer.echo(render(report))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Examine this machine: devices, providers, versions, conflicts, and what to install."""
    from lipsformer.doctor import examine, render

    report = examine()
    if as_json:
        _print_json(report)
    else:
        typer.echo(render(report))


def main() -> None:
    """Runs the command line and exits with its status."""
    try:
        status = app(_arguments(), standalone_mode=False)
    except LipsFormerError as error:
        _fail(str(error), error.exit_code)
    except typer.exceptions.TyperException as error:
        if not error.format_message():  # no command given: the help has been shown
            sys.exit(error.exit_code)
        _fail(f"{error.format_message()} (see `lipsformer --help`)", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone; point stdout elsewhere so that its flush at exit is silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'the operation'}: {error.strerror or error}; check the path and its permissions", 2)
    except MemoryError:
        _fail(NO_MEMORY, 2)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("allocate memory", "out of memory")):  # as torch says it
            raise
        _fail(NO_MEMORY, 2)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _arguments() -> list[str]:
    """The command line, where a bare `--resume` stands for `--resume auto`."""
    words = sys.argv[1:]
    bare = [
        i for i, word in enumerate(words) if word == "--resume" and words[i + 1 : i + 2] not in (["auto"], ["never"])
    ]
    for index in reversed(bare):
        words.insert(index + 1, "auto")
    return words


def _dataset(name: str | None) -> Path | None:
    from lipsformer.fetch import resolve_dataset

    return None if name is None else resolve_dataset(name)


def _resumes(resume: str) -> bool:
    if resume not in ("auto", "never"):
        raise InputError(f"--resume {resume}: auto or never is needed")
    return resume == "auto"


def _fail(message: str, status: int) -> None:
    from lipsformer.console import printable

    typer.echo(f"lipsformer: {printable(' '.join(message.split()))}", err=True)
    sys.exit(status)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
