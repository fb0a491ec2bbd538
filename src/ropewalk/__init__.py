"""Ropewalk: an actor runtime for conversations with language models.

Two layers stand behind this door. `ropewalk.runtime` keeps actors of any kind: mailboxes, supervision, events, a journal;
it knows no message and no model, so each of its promises can be proved without one. `ropewalk.actors` makes an actor a
conversation. The arrow between them points one way. What is importable from here is the public face; `ropewalk.testing`
is for tests and is imported on purpose.
"""

from ropewalk.actors.agent import Agent as Agent
from ropewalk.actors.agent_stream import AgentStream as AgentStream
from ropewalk.actors.conversation import ConversationManager as ConversationManager
from ropewalk.actors.conversation import NullConversationManager as NullConversationManager
from ropewalk.actors.conversation import SlidingWindowConversationManager as SlidingWindowConversationManager
from ropewalk.actors.errors import ContextWindowOverflow as ContextWindowOverflow
from ropewalk.actors.errors import DuplicateTool as DuplicateTool
from ropewalk.actors.errors import InvalidConversation as InvalidConversation
from ropewalk.actors.errors import InvalidPrompt as InvalidPrompt
from ropewalk.actors.errors import InvalidRequestState as InvalidRequestState
from ropewalk.actors.errors import InvalidTool as InvalidTool
from ropewalk.actors.errors import KeyReused as KeyReused
from ropewalk.actors.errors import ModelError as ModelError
from ropewalk.actors.errors import ModelThrottled as ModelThrottled
from ropewalk.actors.errors import NoModel as NoModel
from ropewalk.actors.errors import SessionBusy as SessionBusy
from ropewalk.actors.errors import TurnFailed as TurnFailed
from ropewalk.actors.events import CycleStarted as CycleStarted
from ropewalk.actors.events import Event as Event
from ropewalk.actors.events import Gap as Gap
from ropewalk.actors.events import HandlerFailed as HandlerFailed
from ropewalk.actors.events import InsertedEntry as InsertedEntry
from ropewalk.actors.events import MessageAdded as MessageAdded
from ropewalk.actors.events import ModelChunk as ModelChunk
from ropewalk.actors.events import ModelRetry as ModelRetry
from ropewalk.actors.events import PromptAccepted as PromptAccepted
from ropewalk.actors.events import PromptSettled as PromptSettled
from ropewalk.actors.events import ReasoningDelta as ReasoningDelta
from ropewalk.actors.events import ReductionEnded as ReductionEnded
from ropewalk.actors.events import ReductionStarted as ReductionStarted
from ropewalk.actors.events import SessionActivated as SessionActivated
from ropewalk.actors.events import SessionPassivated as SessionPassivated
from ropewalk.actors.events import Snapshot as Snapshot
from ropewalk.actors.events import StepRestarted as StepRestarted
from ropewalk.actors.events import TextDelta as TextDelta
from ropewalk.actors.events import ToolEnded as ToolEnded
from ropewalk.actors.events import ToolInputDelta as ToolInputDelta
from ropewalk.actors.events import ToolProgress as ToolProgress
from ropewalk.actors.events import ToolStarted as ToolStarted
from ropewalk.actors.events import TurnEnded as TurnEnded
from ropewalk.actors.events import TurnPaused as TurnPaused
from ropewalk.actors.events import TurnResumed as TurnResumed
from ropewalk.actors.events import TurnStarted as TurnStarted
from ropewalk.actors.events import ViewChanged as ViewChanged
from ropewalk.actors.handlers import CallbackAdapter as CallbackAdapter
from ropewalk.actors.handlers import CompositeCallbackHandler as CompositeCallbackHandler
from ropewalk.actors.handlers import PrintingCallbackHandler as PrintingCallbackHandler
from ropewalk.actors.limits import Limits as Limits
from ropewalk.actors.messages import Message as Message
from ropewalk.actors.models import Model as Model
from ropewalk.actors.models.embedded.model import EmbeddedModel as EmbeddedModel
from ropewalk.actors.models.openai import OpenAIModel as OpenAIModel
from ropewalk.actors.result import AgentResult as AgentResult
from ropewalk.actors.result import EventLoopMetrics as EventLoopMetrics
from ropewalk.actors.result import ToolMetrics as ToolMetrics
from ropewalk.actors.result import Trace as Trace
from ropewalk.actors.session.export import export_session as export_session
from ropewalk.actors.session.export import import_session as import_session
from ropewalk.actors.session.handle import Session as Session
from ropewalk.actors.session.handle import SessionStatistics as SessionStatistics
from ropewalk.actors.session.stream import OnLeave as OnLeave
from ropewalk.actors.session.stream import Turn as Turn
from ropewalk.actors.spec import AgentSpec as AgentSpec
from ropewalk.actors.tools import Tool as Tool
from ropewalk.actors.tools import ToolContext as ToolContext
from ropewalk.actors.tools import tool as tool
from ropewalk.actors.view import TranscriptEntry as TranscriptEntry
from ropewalk.runtime.cell import Cell as Cell
from ropewalk.runtime.channel import Channel as Channel
from ropewalk.runtime.clock import Clock as Clock
from ropewalk.runtime.envelope import Envelope as Envelope
from ropewalk.runtime.errors import DuplicateKind as DuplicateKind
from ropewalk.runtime.errors import Fenced as Fenced
from ropewalk.runtime.errors import InvalidHandler as InvalidHandler
from ropewalk.runtime.errors import InvalidOption as InvalidOption
from ropewalk.runtime.errors import InvalidSessionId as InvalidSessionId
from ropewalk.runtime.errors import JournalDamaged as JournalDamaged
from ropewalk.runtime.errors import JournalUnavailable as JournalUnavailable
from ropewalk.runtime.errors import MailboxFull as MailboxFull
from ropewalk.runtime.errors import Quarantined as Quarantined
from ropewalk.runtime.errors import Refused as Refused
from ropewalk.runtime.errors import RopewalkError as RopewalkError
from ropewalk.runtime.errors import RuntimeClosed as RuntimeClosed
from ropewalk.runtime.errors import SessionElsewhere as SessionElsewhere
from ropewalk.runtime.errors import SessionExists as SessionExists
from ropewalk.runtime.errors import SlowReader as SlowReader
from ropewalk.runtime.errors import UnknownRecord as UnknownRecord
from ropewalk.runtime.errors import UnknownSession as UnknownSession
from ropewalk.runtime.errors import WouldDeadlock as WouldDeadlock
from ropewalk.runtime.handler import Handler as Handler
from ropewalk.runtime.journal import Journal as Journal
from ropewalk.runtime.journal import MemoryJournal as MemoryJournal
from ropewalk.runtime.journal import SQLiteJournal as SQLiteJournal
from ropewalk.runtime.kind import Actor as Actor
from ropewalk.runtime.kind import ActorKind as ActorKind
from ropewalk.runtime.recovery import RecoveryReport as RecoveryReport
from ropewalk.runtime.reports import RuntimeStatistics as RuntimeStatistics
from ropewalk.runtime.reports import SessionInfo as SessionInfo
from ropewalk.runtime.reports import ShutdownReport as ShutdownReport
from ropewalk.runtime.runtime import Runtime as Runtime
from ropewalk.runtime.subscription import Subscription as Subscription
from ropewalk.runtime.supervision import Backoff as Backoff
from ropewalk.runtime.supervision import RestartPolicy as RestartPolicy

__version__ = "0.1.0"
__all__ = [
    "Actor",
    "ActorKind",
    "Agent",
    "AgentResult",
    "AgentSpec",
    "AgentStream",
    "Backoff",
    "CallbackAdapter",
    "Cell",
    "Channel",
    "Clock",
    "CompositeCallbackHandler",
    "ContextWindowOverflow",
    "ConversationManager",
    "CycleStarted",
    "DuplicateKind",
    "DuplicateTool",
    "EmbeddedModel",
    "Envelope",
    "Event",
    "EventLoopMetrics",
    "Fenced",
    "Gap",
    "Handler",
    "HandlerFailed",
    "InsertedEntry",
    "InvalidConversation",
    "InvalidHandler",
    "InvalidOption",
    "InvalidPrompt",
    "InvalidRequestState",
    "InvalidSessionId",
    "InvalidTool",
    "Journal",
    "JournalDamaged",
    "JournalUnavailable",
    "KeyReused",
    "Limits",
    "MailboxFull",
    "MemoryJournal",
    "Message",
    "MessageAdded",
    "Model",
    "ModelChunk",
    "ModelError",
    "ModelRetry",
    "ModelThrottled",
    "NoModel",
    "NullConversationManager",
    "OnLeave",
    "OpenAIModel",
    "PrintingCallbackHandler",
    "PromptAccepted",
    "PromptSettled",
    "Quarantined",
    "ReasoningDelta",
    "RecoveryReport",
    "ReductionEnded",
    "ReductionStarted",
    "Refused",
    "RestartPolicy",
    "RopewalkError",
    "Runtime",
    "RuntimeClosed",
    "RuntimeStatistics",
    "SQLiteJournal",
    "Session",
    "SessionActivated",
    "SessionBusy",
    "SessionElsewhere",
    "SessionExists",
    "SessionInfo",
    "SessionPassivated",
    "SessionStatistics",
    "ShutdownReport",
    "SlidingWindowConversationManager",
    "SlowReader",
    "Snapshot",
    "StepRestarted",
    "Subscription",
    "TextDelta",
    "Tool",
    "ToolContext",
    "ToolEnded",
    "ToolInputDelta",
    "ToolMetrics",
    "ToolProgress",
    "ToolStarted",
    "Trace",
    "TranscriptEntry",
    "Turn",
    "TurnEnded",
    "TurnFailed",
    "TurnPaused",
    "TurnResumed",
    "TurnStarted",
    "UnknownRecord",
    "UnknownSession",
    "ViewChanged",
    "WouldDeadlock",
    "export_session",
    "import_session",
    "tool",
]
