"""Many machines, with Ray: a processor for its data sets, and an application for Ray Serve.

Thin, and nothing else in slmq imports it. Answers are functions of their requests, so a row that is
computed twice, because a worker was killed, comes out the same, and any replica may answer.
"""

from slmq.server.ray.deployment import build_application
from slmq.server.ray.processor import Processor, ProcessorConfig, build_processor

__all__ = ["Processor", "ProcessorConfig", "build_application", "build_processor"]
