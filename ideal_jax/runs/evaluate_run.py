"""One round's evaluation: loss and greedy exact match per capability."""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ideal_jax import config as config_lib
from ideal_jax.data import end_of_turn, example_batches, render_all, render_prompt
from ideal_jax.data.records import Record
from ideal_jax.errors import UserError
from ideal_jax.evaluation import Losses, domain_losses, generate_all, make_generate
from ideal_jax.mixture import permutation
from ideal_jax.models import example_losses
from ideal_jax.runs import cost
from ideal_jax.runs.session import Session

# Salts of the permutations that split and sample; plans use (seed, domain, pass).
_REFERENCE_SALT = 101
_SHOWN = 2  # generations per domain kept for the report


def reference_halves(session: Session, domain: int) -> tuple[np.ndarray, np.ndarray]:
    """(items for ∇Q, items for choosing the best round): one reference set split at random."""
    size = len(session.data.reference[session.names[domain]])
    order = permutation(size, session.config.seed, domain, 0, _REFERENCE_SALT)
    return order[: size // 2], order[size // 2 :]


def evaluate_round(session: Session, params: Any, name: str) -> dict[str, Any]:
    """``evaluation.json`` of ``session.whole_model``; reads no file and decides nothing."""
    config, started = session.config, time.perf_counter()
    tokens = 0.0
    reference: dict[str, Any] = {}
    test: dict[str, Any] = {}
    selection: dict[str, Losses] = {}
    tasks: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    generation = "exact_match" in config_lib.names(config.eval.tasks)
    total = len(session.names) * (3 if generation else 2)
    losses_fn = jax.jit(example_losses(session.whole_model, config.loss.block))
    generate = jax.jit(
        make_generate(
            session.whole_model,
            max_new_tokens=config.eval.max_new_tokens,
            end_id=end_of_turn(session.data.tokenizer),
        )
    )
    with session.reporter.phase(name, first=total // len(session.names)) as advance:
        done = 0
        for j, domain in enumerate(session.names):
            for split, table in (("reference", reference), ("test", test)):
                losses, used = _losses(session, losses_fn, params, domain, split)
                table[domain] = _loss_entry(session, domain, split, losses)
                tokens += used
                if split == "reference":
                    selection[domain] = losses.take(reference_halves(session, j)[1])
                done += 1
                advance(done, total, f"{domain} {split} loss")
            if generation:
                task, shown, used = _exact_match(session, generate, params, domain)
                tasks.extend(task)
                samples.extend(shown)
                tokens += used
                done += 1
                advance(done, total, f"{domain} generation")
    v = np.asarray(session.capability_weights)
    overall: dict[str, float | None] = {"overall": None, "overall_stderr": None}
    if tasks:
        values = np.asarray([task["value"] for task in tasks])
        errors = np.asarray([task["stderr"] for task in tasks])
        answering = v[[session.names.index(task["domain"]) for task in tasks]]
        answering = answering / max(answering.sum(), np.finfo(float).tiny)
        overall["overall"] = float(answering @ values)
        overall["overall_stderr"] = float(np.sqrt(answering**2 @ errors**2))
    return {
        "tasks": tasks,
        **overall,
        "reference_loss": reference,
        "test_loss": test,
        "selection": {domain: _examples(losses) for domain, losses in selection.items()},
        "selection_loss": float(v @ np.asarray([half.mean() for half in selection.values()])),
        "test_loss_mean": float(v @ np.asarray([test[d]["nats_per_token"] for d in session.names])),
        "samples": samples,
        "flops": cost.forward_flops(session.model.cfg, tokens, config.data.row_length),
        "seconds": time.perf_counter() - started,
    }


def _losses(
    session: Session, losses_fn: Any, params: Any, domain: str, split: str
) -> tuple[Losses, float]:
    store = getattr(session.data, split)[domain]
    batches = example_batches(
        store,
        np.arange(len(store)),
        session.names.index(domain),
        batch_size=session.rows(session.config.eval.batch_size),
        lengths=session.widths,
        reduction="token",
    )
    tokens = float(sum(batch["tokens"].size for batch in batches))
    return domain_losses(losses_fn, session.mesh, params, batches), tokens


def _examples(losses: Losses) -> dict[str, list[Any]]:
    """What rounds are compared by, example by example: item numbers, nats and tokens."""
    return {
        "items": losses.items.tolist(),
        "loss": losses.loss.tolist(),
        "tokens": losses.weight.tolist(),
    }


def _loss_entry(session: Session, domain: str, split: str, losses: Losses) -> dict[str, Any]:
    store = getattr(session.data, split)[domain]
    count = 0
    for tokens, mask in (store[int(item)] for item in losses.items):
        count += len(_text(session, tokens[mask]).encode())
    return {
        "nats_per_token": losses.mean(),
        "stderr": losses.stderr(),
        "bits_per_byte": float(losses.loss.sum()) / math.log(2) / max(count, 1),
        "n": len(losses.items),
    }


def _exact_match(
    session: Session, generate: Any, params: Any, domain: str
) -> tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]], float]:
    """(the task, if the domain's test set has prompts to answer; samples; tokens computed)."""
    config, tokenizer = session.config, session.data.tokenizer
    records, prompts = _prompts(session, domain)
    if len(records) < 2:
        return [], [], 0.0
    outputs = generate_all(
        generate,
        session.mesh,
        params,
        prompts,
        batch_size=session.rows(config.eval.batch_size),
        widths=session.widths,
        end_id=end_of_turn(tokenizer),
    )
    texts = [""] * len(records)
    for index, tokens in outputs:
        texts[index] = _text(session, tokens).strip()
    # As the template writes it: some put a thought before every answer, and that is learned.
    answers = render_all(
        tokenizer,
        [record.messages for record in records],
        [record.where for record in records],
        "last",
        [record.tools for record in records],
    )
    expected = [_text(session, answer.tokens[answer.mask]).strip() for answer in answers]
    hits = np.asarray([text == want for text, want in zip(texts, expected, strict=True)], float)
    task = {
        "name": "exact_match",
        "domain": domain,
        "metric": "exact_match",
        "value": float(hits.mean()),
        "stderr": float(hits.std(ddof=1) / math.sqrt(len(hits))),
        "n": len(hits),
    }
    shown = [
        {
            "domain": domain,
            "prompt": records[i].prompt[-1]["content"],
            "generated": texts[i],
            "reference": expected[i],
            "correct": bool(hits[i]),
        }
        for i in range(min(_SHOWN, len(records)))
    ]
    computed = float(sum(len(p) for p in prompts) + len(prompts) * config.eval.max_new_tokens)
    return [task], shown, computed


def _prompts(session: Session, domain: str) -> tuple[list[Record], list[np.ndarray]]:
    """The test examples that ask for a text, and what is asked; tells how many do not."""
    found = session.data.records(domain, "test")[: session.config.eval.examples]
    talks = [record for record in found if record.text is None]
    records, prompts = [], []
    for record in talks:
        answer = record.messages[len(record.prompt)]
        if not record.prompt or answer.get("tool_calls"):
            continue
        # What a template writes as part of a conversation it may refuse as its beginning.
        with contextlib.suppress(UserError):
            tokens = render_prompt(
                session.data.tokenizer, record.prompt, record.where, record.tools
            )
            records.append(record)
            prompts.append(tokens)
    if missing := len(talks) - len(records):
        session.reporter.say(
            f"{domain}: {missing} of {len(talks)} test conversations have no prompt to answer in "
            "words, so exact match leaves them out",
        )
    return records, prompts


def _text(session: Session, tokens: np.ndarray) -> str:
    return str(session.data.tokenizer.decode(tokens, skip_special_tokens=True))
