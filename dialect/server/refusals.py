"""What is refused: as a status, and as the object that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered. param: what of it is wrong; after_s: when to try again."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.after_s = message, status, param, after_s

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {"Retry-After": str(self.after_s)} if self.after_s else {}

    def told(self) -> dict[str, Any]:
        """The body of the answer."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, usual)
        about = {"message": self.message, "type": kind, "param": self.param, "code": None}
        return {"error": about}
