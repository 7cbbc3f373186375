"""The endpoints of `sdlab.ui.api` as tools of MCP, the Model Context Protocol, on by `app.py --api --mcp`.

Gradio offers every endpoint under its name, with the description and the parameters that the API's schema has, at
ADDRESS ("streamable HTTP": one POST for each call, and no sessions).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

ADDRESS = "/gradio_api/mcp/"
DATA_URL = "data:"


def require_mcp() -> None:
    """Raise ValueError unless the packages for MCP are installed."""
    if importlib.util.find_spec("mcp") is None:
        raise ValueError(
            "--mcp needs the package mcp, which is not installed: pip install -r extras/mcp.txt; without --mcp, "
            "programs use the endpoints of --api"
        )


def answer_legibly(page: gr.Blocks) -> None:
    """Have the tools of a mounted page answer with JSON and images: Gradio's own answers are Python's notation, with
    images as text. RuntimeError if MCP could not be set up."""
    tools = page.mcp_server_obj
    if tools is None:
        raise RuntimeError(page.mcp_error or "MCP could not be set up")
    tools.postprocess_output_data = lambda data, root_url: contents(data)


def contents(answers: Iterable[Any]) -> list[Any]:
    """Return the answers of an endpoint as MCP's contents: of a dict, texts that are data URLs become images."""
    from mcp import types

    found: list[Any] = []
    for answer in answers:
        images = {k: v for k, v in answer.items() if _is_picture(v)} if isinstance(answer, dict) else {}
        rest = {k: v for k, v in answer.items() if k not in images} if images else answer
        found.append(types.TextContent(type="text", text=json.dumps(rest, ensure_ascii=False)))
        for url in images.values():
            kind, _, data = url.removeprefix(DATA_URL).partition(";base64,")
            found.append(types.ImageContent(type="image", data=data, mimeType=kind))
    return found


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(f"{DATA_URL}image/") and ";base64," in value[:40]
