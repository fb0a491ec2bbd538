"""Tools: what a model may call, from a function or from parts, and how calls are run to exactly one result each."""

from ropewalk.actors.tools.context import ToolContext as ToolContext
from ropewalk.actors.tools.decorator import FunctionTool as FunctionTool
from ropewalk.actors.tools.decorator import tool as tool
from ropewalk.actors.tools.executor import run_tool as run_tool
from ropewalk.actors.tools.executor import run_tools as run_tools
from ropewalk.actors.tools.limits import ToolLimits as ToolLimits
from ropewalk.actors.tools.registry import ToolRegistry as ToolRegistry
from ropewalk.actors.tools.results import call_keys as call_keys
from ropewalk.actors.tools.results import interrupted_result as interrupted_result
from ropewalk.actors.tools.results import settled as settled
from ropewalk.actors.tools.tool import Tool as Tool
