"""The taint that keeps pods away from a node until it can route: taken off once it can, never put on.

Who makes the node puts it on: the kubelet, by `--register-with-taints=node.netloom.dev/not-ready=:NoSchedule`, or the
cloud's template of the node. A Node that is made anew has it again, so it is looked for once more whenever this node's
NetloomNode is another one, and now and then.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from netloom.api.core import NODES, TaintedSpec
from netloom.api.core import NOT_READY_TAINT as KEY
from netloom.api.meta import ObjectMeta, Struct
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, Conflict, Forbidden, NotFound
from netloom.runtime.waking import wait

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 5.0
LOOK_SECONDS = 600.0
"""Between looks without a reason."""
ATTEMPTS = 5
"""Until another writer is left alone for a while: a node that becomes ready is written to by several at that moment."""


class TaintedNode(Struct, frozen=True):
    """core/v1 Node, as far as its taints go."""

    metadata: ObjectMeta = ObjectMeta()
    spec: TaintedSpec = TaintedSpec()


TAINTED = NODES.read_as(TaintedNode)


class Taint:
    """Of one Node. is_ready: whether pods may come. changed: is called when `error` may be different."""

    def __init__(
        self, api: Api, node: str, is_ready: Callable[[], bool], changed: Callable[[], None] = lambda: None
    ) -> None:
        self.error = ""
        """Why it cannot be taken off, as a sentence."""
        self.removed = 0
        self._api = api
        self._node = node
        self._is_ready = is_ready
        self._changed = changed
        self._wake = asyncio.Event()

    def look_soon(self) -> None:
        """The node may be ready by now, or be another one."""
        self._wake.set()

    async def run(self) -> None:
        """For ever: whenever the node is ready and there may be one."""
        while True:
            self._wake.clear()
            is_done = self._is_ready() and await self.remove()
            # Until then it is asked again: not all that makes a node unready for a moment says when it is over.
            await wait(self._wake, LOOK_SECONDS if is_done else AGAIN_SECONDS)

    async def remove(self) -> bool:
        """Take it off if it is there; False where that is to be tried again."""
        try:
            for _ in range(ATTEMPTS):
                with contextlib.suppress(Conflict):  # somebody else has written it meanwhile
                    await self._remove()
                    return self._say("")
            return False
        except NotFound:
            return self._say("")  # it comes, or this is no Node's machine
        except Forbidden as error:
            self._say(
                f"Node {self._node}: the taint {KEY} cannot be taken off ({error.message}), so pods stay away. Give "
                f"the agent the right to patch nodes, or remove it: kubectl taint nodes {self._node} {KEY}-"
            )
            return False
        except ApiError as error:
            self._say(f"Node {self._node}: the taint {KEY} cannot be taken off yet: {error}")
            return False

    async def _remove(self) -> None:
        node = await self._api.get(TAINTED, self._node)
        left = [each for each in node.spec.taints if each.get("key") != KEY]
        if len(left) == len(node.spec.taints):
            return
        version = node.metadata.resource_version
        await self._api.patch(
            TAINTED, self._node, {"metadata": {"resourceVersion": version}, "spec": {"taints": left or None}}
        )
        self.removed += 1
        log.info("the node can route, and pods may come", node=self._node, taint=KEY)

    def _say(self, error: str) -> bool:
        if error != self.error:
            self.error = error
            self._changed()
        return not error
