"""The wandb server, for what is sent to it after a run: runs (sync.py) and workspaces (workspace.py)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.tracking import wandb as tracking
from gpt2x.tracking.tracker import one_line

_RETRIES = 2  # of a request; with wandb's own 20 it takes an hour to learn that there is no server


class Server:
    """The server that wandb is set up for, asked and told by the unmodified client, whose files lie in a temporary folder.

    `api` is wandb's own access to it, `url` its address, `entity` the key's user or team, `folder` the temporary folder,
    `finish_timeout` what WANDB_FINISH_TIMEOUT says, else 0. Entering it raises UserError if there is no key or no server.
    """

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            before = {key: os.environ.get(key) for key in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING")}
            stack.callback(_restore, before)
            stack.callback(tracking.restart)
            self.connect()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Begin anew with the server; also after an error, with which the client may be stuck."""
        tracking.restart()
        found = tracking.setup(self.folder, x_graphql_retry_max=_RETRIES, x_graphql_retry_wait_max_seconds=4)
        self.url, self.finish_timeout = found.base_url, found.finish_timeout
        import wandb

        try:
            self.api = wandb.Api(timeout=20)
            self.entity = self.api.default_entity
        except Exception as error:
            raise UserError(
                f"nothing is sent: {self.url} cannot be used ({one_line(error)})\n"
                f"  With an account: wandb login, or WANDB_API_KEY=KEY. A server of your own: wandb login --host=URL.\n"
                f"  Without one: gpt2x-compare, and wandb leet, show the runs offline."
            ) from None


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
