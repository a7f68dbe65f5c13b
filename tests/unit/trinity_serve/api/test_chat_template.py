from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.deadline import Deadline
from cluster.errors import ConfigError, DeadlineExceededError, InvalidRequestError
from trinity_serve.api.chat_template import ChatTemplate

USER: list[dict[str, object]] = [{"role": "user", "content": "<Hi>"}]


def _render(source: str, max_chars: int = 1000, budget_s: float = 10.0) -> str:
    template = ChatTemplate(source, {"eos_token": "</s>"}, "test")
    return template.render(USER, {}, Deadline.after(budget_s), max_chars)


def test_the_checkpoints_template_makes_chatml(tiny_checkpoint: Path) -> None:
    template = ChatTemplate.from_folder(tiny_checkpoint)
    assert template is not None
    text = template.render(USER, {"add_generation_prompt": True}, Deadline.after(10.0), 1000)
    assert text == "<|im_start|>user\n<Hi><|im_end|>\n<|im_start|>assistant\n"


def test_blocks_are_trimmed_as_transformers_trims_them() -> None:
    assert (
        _render("{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n{% endif %}\n{% endfor %}")
        == "user\n"
    )


def test_loop_controls_special_tokens_and_tojson_without_html_escapes() -> None:
    source = "{% for m in messages %}{{ m | tojson }}{{ eos_token }}{% break %}{% endfor %}"
    assert _render(source) == '{"role": "user", "content": "<Hi>"}</s>'


def test_the_date_is_there_for_templates_that_tell_it() -> None:
    assert len(_render("{{ strftime_now('%Y') }}")) == 4


def test_raise_exception_is_the_clients_error_with_its_text() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        _render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ range(100000000) | list }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
    ],
)
def test_the_sandbox_refuses_to_leave_data(source: str) -> None:
    with pytest.raises(InvalidRequestError):
        _render(source)


def test_output_past_the_limit_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidRequestError, match="limit of 50 characters"):
        _render("{% for i in range(1000) %}{{ i }}{% endfor %}", max_chars=50)


def test_a_template_that_runs_too_long_ends_at_the_deadline() -> None:
    with pytest.raises(DeadlineExceededError, match="chat template"):
        _render(
            "{% for i in range(99999) %}{% for j in range(99999) %}.{% endfor %}{% endfor %}",
            max_chars=10**12,
            budget_s=0.05,
        )


def test_a_template_that_does_not_compile_names_its_file() -> None:
    with pytest.raises(ConfigError, match=r"somewhere\.jinja"):
        ChatTemplate("{% for %}", {}, "somewhere.jinja")


def test_the_template_may_stand_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}!", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = ChatTemplate.from_folder(tmp_path)
    assert template is not None
    assert template.render(USER, {}, Deadline.after(10.0), 100) == "<s>!"


def test_a_checkpoint_without_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.from_folder(tmp_path) is None
