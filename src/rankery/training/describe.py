"""What a run says at its start: the data as it was read, and what really runs.

Contract: pure functions of what was built; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rankery.data.encoding import EncodedPairs
from rankery.data.plan import Plan, Step, computed_tokens, pass_tokens
from rankery.models.budget import computes_bf16
from rankery.objective import is_grouped

if TYPE_CHECKING:
    from rankery.training.run import Run


def describe_data(name: str, data: EncodedPairs) -> str:
    """The short summary after reading."""
    documents = np.bincount(data.arrays["pair_query"], minlength=data.queries)
    labels, counts = np.unique(data.arrays["label"], return_counts=True)
    if len(labels) > 12:
        counts, edges = np.histogram(data.arrays["label"], bins=10)
        labels = edges[:-1]
    histogram = ", ".join(f"{label:g}: {count}" for label, count in zip(labels, counts, strict=True))
    query_tokens = data.arrays["query_length"][data.arrays["pair_query"]]
    query_kept, document_kept = data.template.cut(query_tokens, data.arrays["document_length"])
    cut = document_kept < data.arrays["document_length"]
    positive = data.arrays["label"] > data.labels.min_label
    median, p95 = np.percentile(data.lengths, [50, 95])
    return (
        f"{name}: {data.queries} queries, {len(data)} pairs, {documents.min()}-{documents.max()} documents a query "
        f"(mean {documents.mean():.1f})\n"
        f"  labels {histogram}\n"
        f"  tokens a pair: mean {data.lengths.mean():.0f}, median {median:.0f}, 95% below {p95:.0f}, most {data.lengths.max()}\n"
        f"  cut to max_len {data.template.max_len}: {cut.mean():.1%} of documents, {(cut & positive).sum()} of "
        f"{positive.sum()} positives lose text; {(query_kept < query_tokens).mean():.1%} of queries"
    )


def describe(run: Run) -> str:
    """What really runs, said at the start."""
    config, engine, plan = run.config, run.engine, run.plan
    sampled = [plan.step(number) for number in range(min(50, plan.steps_per_epoch))]
    real = np.array([run.train_data.lengths[step.pairs].sum() for step in sampled])
    computed = sum(computed_tokens(step, plan.lengths, plan.layout, plan.trunks) for step in sampled)
    if plan.layout == "shared":
        shared = "the prompt's beginning" if run.reranker.template.document_first else "the query"
        spared = f"{100 * (1 - computed / real.sum()):.1f}% of tokens are spared: {shared} is computed once for a query's documents"
    else:
        spared = f"{100 * (1 - real.sum() / computed):.1f}% of computed tokens are padding"
    pairs = np.mean([len(step.pairs) for step in sampled])
    grouped = is_grouped(config.loss_type)
    examples = (
        f"{_counted(plan.batch, 'query', 'queries')} with about {pairs:.0f} pairs" if grouped else f"{plan.batch} pairs"
    )
    slow_bf16 = ""
    if config.mixed_precision == "bf16" and engine.device.type == "cpu" and not computes_bf16():
        slow_bf16 = " (slower than fp32 on this CPU: mixed_precision=no)"
    total, trained = sum(n for n, _ in run.parameters), sum(n for n, is_trained in run.parameters if is_trained)
    return (
        f"{run.summary}\n"
        f"engine {engine.kind}, {_counted(engine.processes, 'process', 'processes')}, device {engine.device.type}, "
        f"precision {config.mixed_precision}{slow_bf16}, attention {run.reranker.model.config._attn_implementation}\n"
        f"{total / 1e6:.1f} M parameters from {config.model_name_or_path}"
        f"{f', {trained / 1e6:.2f} M of them trained' if trained < total else ''}\n"
        f"{_counted(run.steps, 'step')} ({_counted(config.epochs, 'epoch')} of {plan.steps_per_epoch}), {examples} and about "
        f"{real.mean():.0f} tokens a step, {plan.layout} micro-batches of {plan.budget} tokens, {spared}"
        f"{_split_groups(plan, sampled)}"
    )


def _split_groups(plan: Plan, sampled: Sequence[Step]) -> str:
    """What is paid for groups over the token budget, and what would spare it; empty where none is."""
    split = [micro for step in sampled for process in step.micro_batches for micro in process if micro.cuts]
    if not split:
        return ""
    share = len(split) / sum(len(step.sizes) for step in sampled)
    largest = max(pass_tokens(micro.pairs, plan.lengths, plan.layout, plan.trunks) for micro in split)
    return (
        f"\n{max(share, 0.001):.1%} of groups are larger and computed in parts, once more without gradients: "
        f"token_budget={largest} spares that, for more memory"
    )


def _counted(number: int, name: str, plural: str = "") -> str:
    return f"{number} {name if number == 1 else plural or name + 's'}"
