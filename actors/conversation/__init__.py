"""How a conversation is kept small: managers, the reduction ladder, and the token counts both go by."""

from __future__ import annotations

from ropewalk.actors.conversation.exchanges import slide as slide
from ropewalk.actors.conversation.ladder import Reduction as Reduction
from ropewalk.actors.conversation.ladder import RungRefused as RungRefused
from ropewalk.actors.conversation.ladder import climb as climb
from ropewalk.actors.conversation.ladder import manage as manage
from ropewalk.actors.conversation.manager import ConversationManager as ConversationManager
from ropewalk.actors.conversation.manager import Draft as Draft
from ropewalk.actors.conversation.manager import NullConversationManager as NullConversationManager
from ropewalk.actors.conversation.manager import SlidingWindowConversationManager as SlidingWindowConversationManager
from ropewalk.actors.conversation.manager import has_policy as has_policy
from ropewalk.actors.conversation.manager import overrides_any as overrides_any
from ropewalk.actors.conversation.manager import policy_of as policy_of
from ropewalk.actors.conversation.manager import run_custom as run_custom
from ropewalk.actors.conversation.rungs import RUNGS as RUNGS
from ropewalk.actors.conversation.rungs import Rung as Rung
from ropewalk.actors.conversation.tokens import estimate as estimate
from ropewalk.actors.conversation.tokens import estimate_all as estimate_all
from ropewalk.actors.conversation.tokens import remembering as remembering
