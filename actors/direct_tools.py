"""An agent's tools as methods of ``agent.tool``, called without asking the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ropewalk.actors.messages import Block

if TYPE_CHECKING:
    from ropewalk.actors.agent import Agent

__all__ = ["DirectTool", "DirectTools"]


class DirectTools:
    """The tools of one agent by name, where an underscore also stands for a hyphen."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> DirectTool:
        tool = self._agent.spec.tools.find(name)
        if tool is None:
            raise AttributeError(f"Tool '{name}' not found")
        return DirectTool(self._agent, tool.name)

    def __dir__(self) -> list[str]:
        return [name.replace("-", "_") for name in self._agent.spec.tools.names]

    def __repr__(self) -> str:
        return f"<tools of {self._agent!r}: {', '.join(dir(self)) or 'none'}>"


class DirectTool:
    """One tool: ``agent.tool.calculator(expression="1+1")`` returns its ``{"toolUseId", "status", "content"}``.

    A recorded call joins the conversation as four messages and waits its turn like a prompt; one that is not recorded leaves
    no trace and waits for nothing. Errors of the tool are results with status ``error``.
    """

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent = agent
        self._name = name

    def __repr__(self) -> str:
        return f"<tool {self._name!r} of {self._agent!r}>"

    def __call__(self, /, user_message_override: str | None = None, record_direct_tool_call: bool | None = None, **tool_input: Any) -> Block:
        """Call the tool and wait for its result.

        :param user_message_override: what the record's first message says before what was called.
        :param record_direct_tool_call: whether the call joins the conversation; None is what the agent was told.
        """
        return self._agent.call_tool(self._name, tool_input, user_message_override, record_direct_tool_call)

    async def invoke_async(self, /, user_message_override: str | None = None, record_direct_tool_call: bool | None = None, **tool_input: Any) -> Block:
        """Call the tool from async code; arguments and result are those of calling it."""
        return await self._agent.call_tool_async(self._name, tool_input, user_message_override, record_direct_tool_call)
