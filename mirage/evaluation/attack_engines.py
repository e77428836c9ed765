"""Language models that an attack asks for rewrites: a server with the OpenAI protocol, or a Hugging Face model."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from mirage.pretrained import resolve_pretrained

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class ServerEngine:
    """A chat model on an OpenAI-compatible server (vLLM, transformers serve, a hosted one).

    Args:
        url: The server's base address, up to and including the version: `http://127.0.0.1:8000/v1`.
        model: The model's name on that server.
        temperature: Sampling temperature; above 0, so that another seed gives another answer.
        max_tokens: The longest answer, in tokens.
        timeout_s: Seconds to wait for one answer.
        retries: How often a request is repeated when the server is busy, slow or unreachable.
        concurrency: How many requests are on their way at a time.
        api_key_env: The environment variable that holds the key, where the server asks for one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        temperature: float = 0.7,
        max_tokens: int = 96,
        timeout_s: float = 60.0,
        retries: int = 3,
        concurrency: int = 8,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"engine.url is {url!r}: it must begin with http:// or https://, such as http://127.0.0.1:8000/v1."
            )
        if concurrency < 1 or retries < 0 or timeout_s <= 0 or max_tokens < 1:
            raise ValueError(
                "engine: concurrency and max_tokens must be at least 1, retries at least 0, timeout_s above 0."
            )
        self.url, self.model, self.temperature, self.max_tokens = url.rstrip("/"), model, temperature, max_tokens
        self.timeout_s, self.retries, self.concurrency, self.api_key_env = timeout_s, retries, concurrency, api_key_env

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        return f"server({self.model}, temperature={self.temperature}, max_tokens={self.max_tokens})"

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order.

        Raises:
            ConnectionError: If the server cannot be reached, does not answer in time, or refuses the request.
            ValueError: If its answer is not one of this protocol.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            answers = [pool.submit(self._answer, prompt, seed) for prompt in prompts]
            return [answer.result() for answer in answers]
        finally:
            # After a failure the requests that wait are dropped: a dead server is not asked 400 times.
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, prompt: str, seed: int) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        reply = self._post(json.dumps(body).encode())
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise ValueError(
                f"{self.url} did not answer in the OpenAI protocol: {reply[:120]!r}. Check engine.url: it ends in /v1 "
                "as a rule."
            ) from None
        return content if isinstance(content, str) else ""

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data=body, headers=headers)
        trouble = ""
        for attempt in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    content: bytes = response.read()
                return content
            except urllib.error.HTTPError as error:
                trouble = f"status {error.code}: {error.read(200)!r}"
                if error.code not in RETRIED_STATUS:
                    break
            except (OSError, http.client.HTTPException) as error:
                trouble = str(getattr(error, "reason", "") or error) or type(error).__name__
            if attempt < self.retries:
                time.sleep(min(0.25 * 2**attempt, 5.0))
        raise ConnectionError(
            f"{self.url} gave no answer for model {self.model!r} ({trouble}). Start the server or correct engine.url "
            "and engine.model; rewrites made so far are in attack.cache, if one is set."
        )


class TextModelEngine:
    """A Hugging Face text model, run in this process. It is loaded at the first prompt.

    Args:
        pretrained: Folder or name of the model (`AutoModelForCausalLM`).
        max_new_tokens: The longest answer, in tokens.
        temperature: Sampling temperature; above 0, so that another seed gives another answer.
        batch_size: Prompts that are answered together.
        device: `auto` takes a GPU where there is one.
        dtype: The number format of the weights; `auto` as they are stored.
    """

    def __init__(
        self,
        pretrained: str,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        batch_size: int = 16,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    ) -> None:
        if temperature <= 0 or max_new_tokens < 1 or batch_size < 1:
            raise ValueError("engine: temperature must be above 0, max_new_tokens and batch_size at least 1.")
        self.pretrained, self.max_new_tokens, self.temperature = pretrained, max_new_tokens, temperature
        self.batch_size, self.device, self.dtype = batch_size, device, dtype
        self._loaded: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        """The model with the settings that its answers depend on."""
        return f"model({self.pretrained}, temperature={self.temperature}, max_new_tokens={self.max_new_tokens})"

    def __call__(self, prompts: list[str], seed: int) -> list[str]:
        """One answer to each prompt, in order. The caller's random state is left as it was."""
        import torch

        tokenizer, model = self._load()
        answers: list[str] = []
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self.batch_size):
                texts = [self._chat(tokenizer, prompt) for prompt in prompts[start : start + self.batch_size]]
                batch = tokenizer(
                    texts, return_tensors="pt", padding=True, add_special_tokens=tokenizer.chat_template is None
                )
                batch = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
                output = model.generate(
                    **batch,
                    do_sample=True,
                    temperature=self.temperature,
                    max_new_tokens=self.max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                )
                answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers

    @staticmethod
    def _chat(tokenizer: Any, prompt: str) -> str:
        if tokenizer.chat_template is None:
            return prompt
        message = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                where = resolve_pretrained(self.pretrained)
                tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left", trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    where, dtype=self.dtype, trust_remote_code=False, use_safetensors=True
                )
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"engine.pretrained: {self.pretrained!r} is no text model that loads ({error})."
                ) from error
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            found = "cuda" if torch.cuda.is_available() else "cpu"
            placed: Any = model  # typed as a mixin without `to`
            self._loaded = tokenizer, placed.to(found if self.device == "auto" else self.device).eval()
        return self._loaded
