"""lm-eval's own `local-completions` against the inline server gives transformers' numbers.

`make lm-eval` installs the tool into an environment of its own; without it these tests are skipped.
The tasks are made here: no data set is downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.support.http import inline_server
from tests.support.serving import config_for, one_thread

TOOL = Path(sys.prefix) / "tools/lm-eval/bin/lm_eval"
TOLERANCE = 1e-4
WORDS = ("river", "stone", "apple", "cloud", "window", "letter", "music", "garden", "winter")
NUM_DOCS = 12
STOP = "e"

pytestmark = [
    pytest.mark.skipif(not TOOL.exists(), reason="make lm-eval installs lm-eval"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

Fields = dict[str, object]
CHOICE_TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
GENERATION_TASK = """
task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["{stop}"], max_gen_toks: 16, temperature: 0.0}}
metric_list:
  - metric: exact_match
"""


@dataclass(frozen=True)
class Sample:
    """One document with what the model was asked and what it answered."""

    doc: Fields
    responses: list[object]


class Line(TypedDict):
    """A line of the samples that lm-eval logs."""

    doc: Fields
    resps: list[object]


@dataclass(frozen=True)
class Evaluation:
    """What lm-eval wrote."""

    results: dict[str, dict[str, float]]
    samples: dict[str, list[Sample]]


def write_tasks(folder: Path) -> None:
    rng = np.random.default_rng(1)
    docs = [
        {
            "question": " ".join(rng.choice(WORDS, rng.integers(2, 6))),
            "choices": [" " + " ".join(rng.choice(WORDS, 2)) for _ in range(3)],
            "answer": int(rng.integers(3)),
        }
        for _ in range(NUM_DOCS)
    ]
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf8")
    for name, task in (("choice", CHOICE_TASK), ("generation", GENERATION_TASK)):
        (folder / f"{name}.yaml").write_text(task.format(data=data, stop=STOP), encoding="utf8")


@pytest.fixture(scope="module")
def evaluation(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("lm-eval")
    write_tasks(folder)
    with inline_server(config_for(tiny_checkpoint, num_shards=2)) as url:
        arguments = (
            f"model=checkpoint,base_url={url}/v1/completions,num_concurrent=4,max_length=512"
        )
        command = [str(TOOL), "run", "--model", "local-completions", "--model_args", arguments]
        command += ["--tasks", "local_choice,local_generation", "--include_path", str(folder)]
        command += ["--output_path", str(folder / "out"), "--log_samples"]
        environment = {
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hf"),
            "HOME": str(folder),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return read_evaluation(folder / "out")


def read_evaluation(folder: Path) -> Evaluation:
    [results] = folder.rglob("results_*.json")
    samples = {
        name: [Sample(line["doc"], line["resps"]) for line in lines(folder, name)]
        for name in ("local_choice", "local_generation")
    }
    return Evaluation(json.loads(results.read_text(encoding="utf8"))["results"], samples)


def lines(folder: Path, task: str) -> Iterator[Line]:
    [path] = folder.rglob(f"samples_{task}_*.jsonl")
    return (json.loads(line) for line in path.read_text(encoding="utf8").splitlines())


@dataclass(frozen=True)
class Reference:
    """transformers, asked the same."""

    model: Any  # generate() has no type that fits all models
    tokenizer: Tokenizer

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        start = len(self.tokenizer.encode(context, add_special_tokens=False).ids)
        ids = self.tokenizer.encode(context + continuation, add_special_tokens=False).ids
        with torch.inference_mode():
            logits_TV = self.model(torch.tensor([ids])).logits[0].float()
        rows_TV = torch.log_softmax(logits_TV, dim=-1)[start - 1 : -1]
        targets = torch.tensor(ids[start:])
        total = float(rows_TV[torch.arange(len(targets)), targets].sum())
        return total, bool((rows_TV.argmax(-1) == targets).all())

    def generate(self, prompt: str) -> str:
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        made = self.model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
        text: str = self.tokenizer.decode(made[0, len(ids) :].tolist(), skip_special_tokens=True)
        return text.split(STOP, maxsplit=1)[0]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Iterator[Reference]:
    model = AutoModelForCausalLM.from_pretrained(
        str(tiny_checkpoint), dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    with one_thread():
        yield Reference(model, tokenizer)


def test_loglikelihoods_and_accuracy_are_those_of_transformers(
    evaluation: Evaluation, reference: Reference
) -> None:
    right = 0
    for sample in evaluation.samples["local_choice"]:
        question, answer = str(sample.doc["question"]), sample.doc["answer"]
        choices = cast(list[str], sample.doc["choices"])
        wanted = [reference.loglikelihood(question, choice) for choice in choices]
        told = [cast(list[list[str]], response)[0] for response in sample.responses]
        ours = [(float(value), str(greedy) == "True") for value, greedy in told]
        assert [v for v, _ in ours] == pytest.approx([v for v, _ in wanted], abs=TOLERANCE)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]
        right += int(np.argmax([value for value, _ in wanted])) == answer
    results = evaluation.results["local_choice"]
    assert results["acc,none"] == pytest.approx(right / NUM_DOCS)


def test_generations_are_those_of_transformers(
    evaluation: Evaluation, reference: Reference
) -> None:
    for sample in evaluation.samples["local_generation"]:
        [[ours]] = cast(list[list[str]], sample.responses)
        assert ours == reference.generate(str(sample.doc["question"]))
