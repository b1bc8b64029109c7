"""A plugin of pytest's for llama.cpp's tests of its server: they run against `slmq serve`.

`check_suites.py llama` loads it. The tests run in their own mode for external servers, in which
they start nothing. Each says in attributes of an object what server it wants; what of that `slmq
serve` has options for is started, and a test that wants something else is excluded, with a reason.
What fails for a reason that is known and meant stands in `EXCLUDED`: it must fail, or the list is
wrong.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

PYTHON, MODEL = (
    "SLMQ_SUITE_PYTHON",
    "SLMQ_SUITE_MODEL",
)  # variables: whose `slmq`, and what it serves
STORIES, ENCODER = "ggml-org/test-model-stories260K", "all-minilm-l6-v2"
# llama.cpp answers under every name of a model; these are the ones that its tests use.
NAMES = (
    "codellama70b",
    "davinci-002",
    "gpt-3.5-turbo",
    "gpt-3.5-turbo-instruct",
    "gpt-4.1",
    "test",
)

# What a test may want of its server, beside what it is by default, that slmq does not have.
MISSING = {
    "backend_sampling": "sampling in a backend",
    "cors_origins": "--cors-origins: slmq allows pages by --allow-origin, one by one",
    "enable_ctx_shift": "a context that shifts: slmq never forgets what was said",
    "gcp_compat": "Google's prediction API",
    "lora_files": "an adapter from the network",
    "mcp_servers_config": "a client of MCP inside the server",
    "mcp_servers_json": "a client of MCP inside the server",
    "media_path": "pictures",
    "model_draft": "a draft model from the network",
    "model_file": "a model from the network",
    "model_tags": "tags of models",
    "model_url": "a model from the network",
    "models_dir": "a folder of models: slmq is given them one by one",
    "models_preset": "a folder of models: slmq is given them one by one",
    "no_ui": "--no-ui",
    "server_reranking": "a cross-encoder of jina's, from the network",
    "server_slots": "/slots: there are none, a request waits for memory and not for a place",
    "server_tools": "tools that run on the server",
    "sleep_idle_seconds": "a server that unloads its model when it is idle",
    "slot_save_path": "/slots: what was computed is kept and found by itself",
    "spec_type": "the choice of what drafts: slmq measures it",
    "ui_mcp_proxy": "a proxy for the page",
}
NATIVE = "asks /completion, llama.cpp's own: slmq has OpenAI's /v1/completions"
DRAWN = (
    "compares words drawn with llama.cpp's random numbers, and its fingerprint, which begins with b"
)
VERBOSE = "reads __verbose, llama.cpp's copy of the prompt; slmq has /apply-template"
PICTURES = "pictures: slmq has no model that sees, and says so with status 400, here 500 is wanted"
FIRST = 'wants null as the first content of a stream; it is "" here, as with OpenAI'
CONTINUED = "continue_final_message and add_generation_prompt: slmq refuses them by name"
TOO_LONG = "wants llama.cpp's own type of error; it is context_length_exceeded, as with OpenAI"
VARIABLES = "a variable that llama.cpp gives templates by itself, and transformers does not"
INPUTS = "input of embeddings that is no text: refused by name"
CROSS = "a page of another origin: slmq refuses it"
TELEMETRY = "progress of the prompt inside the stream: slmq tells it in timings, at the end"
# By file and name, as a pattern from the beginning.
EXCLUDED = {
    r"test_basic\.py::test_server_props": "/props: settings of llama.cpp's",
    r"test_basic\.py::test_server_slots": MISSING["server_slots"],
    r"test_basic\.py::test_no_ui": MISSING["no_ui"],
    r"test_chat_completion\.py::test_chat_completion\[": DRAWN,
    r"test_chat_completion\.py::test_chat_completion_stream": DRAWN,
    r"test_chat_completion\.py::test_chat_completion_with_openai_library": DRAWN,
    r"test_chat_completion\.py::test_chat_completion_with_timings": FIRST,
    r"test_chat_completion\.py::test_logprobs_stream": FIRST,
    r"test_chat_completion\.py::test_chat_template_assistant_prefill": VERBOSE,
    r"test_chat_completion\.py::test_chat_template_continue_final_message_vllm": CONTINUED,
    r"test_chat_completion\.py::test_context_size_exceeded": TOO_LONG,
    r"test_chat_completion\.py::test_invalid_chat_completion_req\[messages7\]": (
        "two answers in a row: the chat template says what becomes of them"
    ),
    r"test_chat_completion\.py::test_verbose_debug": VERBOSE,
    r"test_chat_completion\.py::test_return_progress": TELEMETRY,
    r"test_compat_anthropic\.py::test_anthropic_tool_result_with_image": PICTURES,
    r"test_compat_anthropic\.py::test_anthropic_vision_format_accepted": PICTURES,
    r"test_compat_anthropic\.py::test_anthropic_empty_messages": "no messages: refused",
    r"test_compat_anthropic\.py::test_anthropic_thinking$": (
        "thinking, of a model that cannot: refused by name"
    ),
    r"test_compat_oai_responses\.py::test_responses_with_openai": DRAWN,
    r"test_compat_oai_responses\.py::test_responses_stream_with_llama_telemetry": TELEMETRY,
    r"test_completion\.py::test_completion_(stream_)?with_openai_library": DRAWN,
    r"test_ctx_shift\.py::test_ctx_shift_disabled_stream": (
        "asks for more tokens than the context holds: refused by name, as with OpenAI, not cut"
    ),
    r"test_embedding\.py::test_embedding_multiple_with_fa": "texts longer than our encoder's 256",
    r"test_embedding\.py::test_embedding_mixed_input\[input([235-9]|10)-": INPUTS,
    r"test_embedding\.py::test_embedding_content_text": INPUTS,
    r"test_embedding\.py::test_embedding_openai_library_(single|multiple)": (
        "an encoder by OpenAI's name for it: encoders have no aliases"
    ),
    r"test_embedding\.py::test_embedding_error_prompt_too_long": "the wording of an error",
    r"test_metrics\.py::test_metrics_disabled": "no metrics: slmq always has them",
    r"test_metrics\.py::test_metrics_embedding": "names of metrics that are llama.cpp's only",
    r"test_proxy\.py::test_mcp_no_proxy": MISSING["ui_mcp_proxy"],
    r"test_router\.py::test_router_(reload|dedup)": MISSING["models_dir"],
    r"test_security\.py::test_access_static_assets": "files of llama.cpp's page: ours is one file",
    r"test_security\.py::test_correct_api_key": "/completions as llama.cpp's own: it is OpenAI's",
    r"test_security\.py::test_cors_options": CROSS,
    r"test_template\.py::test_reasoning\[(deepseek|Qwen-QwQ|Cohere)": VARIABLES,
    r"test_template\.py::test_date_inside_prompt": VARIABLES,
    r"test_tool_call\.py::test_completion_without_tool_call_fast\[.*STREAMED": FIRST,
}


class Served:
    """The `slmq serve` of a test."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self, wanted: Any) -> None:
        """Start what a test wants, or skip it."""
        self.stop()
        command = [os.environ[PYTHON], "-m", "slmq.cli", *options(wanted)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in iter(self._process.stderr.readline, ""):
            said.append(line)
            if "serving at" in line:
                threading.Thread(target=self._process.stderr.read, daemon=True).start()
                return
        raise RuntimeError(f"slmq serve did not start: {''.join(said)}")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


SERVED = Served()


def options(wanted: Any) -> list[str]:
    """What `slmq serve` is given for a test; skips one that wants what slmq does not have."""
    encodes = wanted.model_hf_repo == "ggml-org/models" and wanted.server_embeddings
    for name, what in MISSING.items():
        if getattr(wanted, name):
            pytest.skip(what)
    if wanted.model_hf_repo is None:
        pytest.skip(MISSING["models_dir"])
    if wanted.model_hf_repo != STORIES and not encodes:
        pytest.skip("a model from the network")
    if "," in wanted.server_host:
        pytest.skip("several addresses")
    if wanted.pooling == "none":
        pytest.skip("vectors of single tokens")
    if wanted.reasoning not in (None, "auto"):
        pytest.skip("--reasoning: reasoning_effort in a request says it")
    name, *aliases = (wanted.model_alias or "tinyllama-2").split(",")
    found = ["serve", model_for(wanted), "--port", str(wanted.server_port), "--name", name]
    for alias in (*aliases, *NAMES):
        found += ["--alias", alias]
    # There a context is divided among the slots.
    found += ["--n-ctx", str((wanted.n_ctx or 512) // (wanted.n_slots or 1))]
    found += ["--temperature", str(wanted.temperature), "--seed", str(wanted.seed)]
    if wanted.n_predict is not None and wanted.n_predict > 0:
        found += ["--max-tokens", str(wanted.n_predict)]
    if wanted.api_key:
        found += ["--api-key", wanted.api_key]
    if encodes:
        found += ["--encoder", ENCODER]
    return found


def model_for(wanted: Any) -> str:
    """The folder of the model, or of one with another chat template."""
    model = Path(os.environ[MODEL])
    if not (wanted.chat_template or wanted.chat_template_file) or wanted.chat_template == "chatml":
        return str(model)
    if wanted.chat_template_file:
        text = Path(wanted.chat_template_file).read_text(encoding="utf-8")
    elif re.fullmatch(r"[\w-]+", wanted.chat_template):
        pytest.skip(f"a template by a name of llama.cpp's: {wanted.chat_template}")
    else:
        text = wanted.chat_template
    folder = model.with_name(f"{model.name}-template")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    config = folder / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "chat_template": text}), encoding="utf-8")
    return str(folder)


def pytest_configure() -> None:
    """Put our server in the place of theirs."""
    # Theirs is imported by the tests' conftest.py, which has put its folder into the path.
    utils = sys.modules["utils"]
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.ServerProcess.start = lambda self, timeout_seconds=0: SERVED.start(self)
    utils.ServerProcess.stop = lambda self: SERVED.stop()


@pytest.fixture(autouse=True)
def ended_after_each_test() -> Any:
    """No server outlives its test."""
    yield
    SERVED.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must fail."""
    for item in items:
        where = item.nodeid.rpartition("/")[2]
        for pattern, reason in EXCLUDED.items():
            if re.match(pattern, where):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
                break
        else:
            if '"/completion"' in inspect.getsource(item.function):  # type: ignore[attr-defined]
                item.add_marker(pytest.mark.skip(reason=NATIVE))
