"""A damaged model folder is one clean error, or scores as before: no traceback, no hang, no other score."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FUZZ, make_bert, make_decoder, words
from mutations import Mutation, mutations, sample

from rankery import CrossEncoder, InputError, LLMDecoder
from rankery.models.calibration import Calibration, write_calibration
from rankery.models.lora import add_adapters
from rankery.models.opening import open_reranker

PAIRS = [(words(i, 1 + i % 4), words(3 * i + 1, 1 + 5 * i % 17)) for i in range(6)]
LONGEST = 60.0  # seconds that one folder may take


def encoder(folder: Path) -> None:
    CrossEncoder.from_pretrained(make_bert(folder / "base"), seed=0, max_len=64).save_pretrained(folder / "model")


def calibrated(folder: Path) -> None:
    encoder(folder)
    write_calibration(folder / "model", Calibration("platt", {"slope": 1.5, "intercept": -0.5}))


def adapters(folder: Path) -> None:
    reranker = CrossEncoder.from_pretrained(make_bert(folder / "base"), seed=0, max_len=64)
    add_adapters(reranker.model, str(folder / "base"), 4, 8, 0.0, "all-linear", seed=0)
    reranker.save_pretrained(folder / "model")


def decoder(folder: Path) -> None:
    LLMDecoder.from_pretrained(make_decoder(folder / "base"), seed=0, max_len=64).save_pretrained(folder / "model")


def yes_no(folder: Path) -> None:
    LLMDecoder.from_pretrained(
        make_decoder(folder / "base"), head="yes_no", yes_word="y", no_word="n", max_len=64
    ).save_pretrained(folder / "model")


KINDS = (encoder, calibrated, adapters, decoder, yes_no)


def scores(folder: Path) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reranker = open_reranker(folder)
        found = [reranker.compute_score(PAIRS)]
        return found if reranker.calibration is None else [*found, reranker.compute_score(PAIRS, calibrated=True)]


def finding(saved: Path, expected: list[torch.Tensor], mutation: Mutation, place: Path) -> str | None:
    """What is wrong about how a damaged folder opens; None where nothing is."""
    folder = Path(shutil.copytree(saved, place, copy_function=os.link))
    (folder / mutation.file).unlink()
    (folder / mutation.file).write_bytes((saved / mutation.file).read_bytes())  # of its own: the others are links
    mutation.apply(folder)
    begun = time.monotonic()
    try:
        got = scores(folder)
    except InputError as error:
        return None if len(str(error).splitlines()) <= 3 and len(str(error)) < 3000 else f"a long error: {error!s:.200}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    finally:
        shutil.rmtree(folder)
        if time.monotonic() - begun > LONGEST:
            pytest.fail(f"{mutation.file}: {mutation.what}: took {time.monotonic() - begun:.0f} s")
    # A calibration, like a contract, may be gone as a whole: then there are no probabilities to be wrong.
    alike = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(got, expected, strict=False))
    return None if alike else "other scores"


def findings(make: Callable[[Path], None], chosen: Callable[[Path], list[Mutation]], folder: Path) -> list[str]:
    make(folder)
    saved = folder / "model"
    expected = scores(saved)
    found = ((one, finding(saved, expected, one, folder / "damaged")) for one in chosen(saved))
    return [f"{one.file}: {one.what}: {problem}" for one, problem in found if problem]


@pytest.mark.fuzz
@pytest.mark.parametrize("make", KINDS)
def test_some_damage(make: Callable[[Path], None], tmp_path: Path) -> None:
    assert not findings(make, lambda saved: sample(saved, 12 * FUZZ, seed=19), tmp_path)


def test_mutations_are_the_same_each_time(bert: Path) -> None:
    every = mutations(bert)
    assert len(every) > 400
    assert len({(one.file, one.what) for one in every}) == len(every)
    assert sample(bert, 5, seed=1) == sample(bert, 5, seed=1) != sample(bert, 5, seed=2)
