"""A server and a prediction from a bundle get by with few packages, and whatever needs more says so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.system.extras import EXTRAS
from tests.support.absent import without_packages
from tests.support.http.server import serving
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"

# The modules of all extras, and those that `pip install 'lipsformer[serve,cpu]'` does not bring.
EVERY = {module for extra in EXTRAS.values() for module in extra.modules}
HEAVY = EVERY - {"onnxruntime", "bentoml", "jinja2"}  # BentoML needs Jinja2


def commands(cases: list[tuple[set[str], list[object]]], folder: Path) -> list[tuple[int, str, str]]:
    """Runs commands one after the other in one process, each without the given modules: (status, stdout, stderr)."""
    script = """
        import contextlib, io, json, sys
        import sitecustomize
        from lipsformer.cli import main

        found = []
        for absent, arguments in json.load(sys.stdin):
            sitecustomize.ABSENT = absent
            sys.argv = ["lipsformer", *arguments]
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                try:
                    main()
                except SystemExit as stop:
                    found.append((stop.code, out.getvalue(), err.getvalue()))
        print(json.dumps(found))
    """
    given = json.dumps([(sorted(absent), [str(word) for word in words]) for absent, words in cases])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=given,
        env=without_packages(EVERY, folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(status, out, err) for status, out, err in json.loads(done.stdout)]


def looked_for(folder: Path) -> set[str]:
    """The absent modules that processes looked for, but for Pillow's plugins, which each process tries."""
    return set((folder / "looked-for.txt").read_text().split()) - set(EXTRAS["formats"].modules)


def test_a_server_answers_without_what_it_does_not_need(trained: Trained, tmp_path: Path) -> None:
    with serving(trained.bundle, tmp_path / "server.log", **without_packages(HEAVY, tmp_path)) as (url, _):
        answer = httpx.post(f"{url}/classify", files={"image": PHOTO.read_bytes()}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert httpx.get(f"{url}/metrics").status_code == httpx.get(url).status_code == 200
    assert "pillow_heif" in (tmp_path / "looked-for.txt").read_text()  # the decoders lack them as well
    assert looked_for(tmp_path) == set()


def test_bundles_are_predicted_evaluated_and_verified_by_the_core(trained: Trained, tmp_path: Path) -> None:
    core = EVERY - {"onnxruntime"} | {"starlette", "uvicorn", "opentelemetry"}
    cases: list[list[object]] = [
        ["predict", trained.bundle, PHOTO],
        ["predict", trained.bundle, SAMPLES, "--output", tmp_path / "rows.jsonl", "--quiet"],
        ["eval", trained.bundle, trained.data],
        ["verify", trained.bundle],
        ["data", "check", trained.data],
        ["download", "lipsformer_cifar10"],
    ]
    found = commands([(core, words) for words in cases], tmp_path)
    assert [(words, err) for words, (status, _, err) in zip(cases, found, strict=True) if status != 0] == []
    assert looked_for(tmp_path) == set()


def test_each_command_names_the_extra_that_is_missing(trained: Trained, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", tmp_path / "rows.parquet"
    rows.touch()
    torch = "PyTorch is not installed; pip install 'lipsformer[train]'"
    runtime = "ONNX Runtime is not installed; pip install 'lipsformer[cpu]' or 'lipsformer[gpu]'"
    serve = "BentoML is not installed; pip install 'lipsformer[serve]'"
    report = "Matplotlib, Jinja2 are not installed; pip install 'lipsformer[report]'"
    train = "PyTorch, Matplotlib are not installed; pip install 'lipsformer[train]'"
    data = "pyarrow is not installed; pip install 'lipsformer[data]'"
    bundle, checkpoint, photos = trained.bundle, trained.checkpoint, trained.data
    cases: list[tuple[set[str], list[object], str]] = [
        (EVERY, ["models"], torch),
        (EVERY, ["train", photos, "--output", out], train),
        (EVERY, ["stability", photos, "--output", out], train),
        (EVERY, ["calibrate", checkpoint, photos, "--output", out], torch),
        (EVERY, ["lipschitz", checkpoint], torch),
        (EVERY, ["certify", checkpoint, photos], train),
        (EVERY, ["explain", checkpoint, PHOTO, "--output", out], torch),
        (EVERY, ["convert", "official.pth", "--output", out], torch),
        (EVERY, ["push", checkpoint, "hf:owner/name"], torch),
        (EVERY, ["benchmark", bundle], torch),
        (EVERY, ["export", checkpoint, "--output", out], "PyTorch, onnx, Matplotlib are not installed; pip install "),
        ({"onnx"}, ["export", checkpoint, "--output", out], "onnx is not installed; pip install 'lipsformer[export]'"),
        ({"onnxruntime"}, ["export", checkpoint, "--output", out], runtime),
        (EVERY, ["predict", checkpoint, PHOTO], f"{checkpoint}: {torch}"),
        (EVERY, ["predict", bundle, PHOTO], runtime),
        (EVERY, ["predict", "hf:owner/name", PHOTO], "hf:owner/name: huggingface-hub is not installed; pip install "),
        (EVERY, ["predict", "bentoml:name", PHOTO], f"bentoml:name: {serve}"),
        (EVERY, ["eval", checkpoint, photos], f"{checkpoint}: {torch}"),
        (EVERY, ["eval", bundle, photos, "--output", out], f"--output: {report}"),
        (EVERY, ["data", "check", photos, "--output", out], f"--output: {report}"),
        (EVERY, ["data", "fetch", "fruit", "--output", out], f"fruit: {data}"),
        (EVERY, ["similar", rows, PHOTO], f"{rows}: {data}"),
        (EVERY, ["similar", rows, PHOTO, "--sheet", out], f"--sheet: {report}"),
        (EVERY, ["verify", bundle], runtime),
        (EVERY, ["serve", bundle], serve),
        ({"onnxruntime"}, ["serve", bundle], runtime),
        ({"onnx"}, ["serve", checkpoint], "onnx is not installed; pip install 'lipsformer[export]'"),
        (EVERY, ["bento", bundle], serve),
        # Last, because they import PyTorch.
        ({"huggingface_hub"}, ["push", checkpoint, "hf:owner/name"], "huggingface-hub is not installed; pip install "),
        ({"mlflow", "huggingface_hub"}, ["push", checkpoint, "mlflow:name"], "MLflow is not installed; pip install "),
    ]
    found = commands([(absent, words) for absent, words, _ in cases], tmp_path)
    for (_, words, expected), (status, shown, err) in zip(cases, found, strict=True):
        assert (status, shown, err.count("\n")) == (2, "", 1), (words, shown, err)
        assert err.startswith("lipsformer: "), (words, err)
        assert expected in err, (words, err)


def test_help_and_doctor_work_without_any_extra(tmp_path: Path) -> None:
    cases: list[tuple[set[str], list[object]]] = [(EVERY, ["train", "--help"]), (EVERY, ["doctor", "--json"])]
    (status, _, _), (doctor, out, err) = commands(cases, tmp_path)
    assert (status, doctor) == (0, 0), err
    report = json.loads(out)
    assert report["commands"]["train"] == "pip install 'lipsformer[train]'"
    assert report["commands"]["serve"] == "pip install 'lipsformer[serve]'"
    assert report["extras"]["export"]["missing"] == ["PyTorch", "onnx", "Matplotlib"]
    assert report["torch_devices"] == []


def test_python_calls_name_the_extra_that_is_missing(trained: Trained, tmp_path: Path) -> None:
    script = f"""
        import lipsformer
        import lipsformer.export
        import lipsformer.train

        calls = [
            lambda: lipsformer.create_model("lipsformer_nano"),
            lambda: lipsformer.load_checkpoint("model.safetensors"),
            lambda: lipsformer.save_checkpoint,
            lambda: lipsformer.LipsFormer,
            lambda: lipsformer.load_predictor("lipsformer_cifar10"),
            lambda: lipsformer.load_predictor({str(trained.bundle)!r}),
            lambda: lipsformer.train.run_training,
            lambda: lipsformer.export.export_bundle,
        ]
        for call in calls:
            try:
                call()
            except lipsformer.InputError as error:
                assert isinstance(error, ImportError)
                print(str(error).partition(": ")[2] or error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=without_packages(EVERY, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    torch = "PyTorch is not installed; pip install 'lipsformer[train]'"
    assert done.stdout.splitlines() == [
        *[torch] * 5,
        "ONNX Runtime is not installed; pip install 'lipsformer[cpu]' or 'lipsformer[gpu]'",
        "PyTorch, Matplotlib are not installed; pip install 'lipsformer[train]'",
        "onnx is not installed; pip install 'lipsformer[export]'",
    ]


def test_the_probe_of_doctor_is_what_onnx_makes() -> None:
    onnx = pytest.importorskip("onnx")
    from lipsformer.cli.doctor import PROBE

    onnx.checker.check_model(PROBE)
    model = onnx.load_from_string(PROBE)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    assert (model.opset_import[0].version, model.ir_version) == (20, 10)
