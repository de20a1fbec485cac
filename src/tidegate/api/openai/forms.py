"""Forms: the schema of `/v1/images/edits`, whose body is multipart and not JSON.

Owns the one schema that FastAPI cannot derive. The form is taken apart in `images`.
"""

from __future__ import annotations

from typing import Any  # Any: a JSON schema is JSON of any shape

from tidegate.api.openai.schemas import EditRequest


def edit_form() -> dict[str, Any]:
    """The fields of EditRequest, and the picture."""
    schema = EditRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["properties"] = {
        "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."},
        **schema["properties"],
    }
    schema["required"] = ["image", *schema["required"]]
    schema["title"] = "EditForm"
    return schema
