"""Where the time of a model goes, by op and by layer, beside the limits of this machine.

Every step of the recorded plan is timed; what it must read and multiply is known from the plan, so
each row says how near it comes to what memory and integer units of this machine can do.
"""

from slmq.profile.measure import profile_model, profile_plan
from slmq.profile.rows import Phase, Profile, Row, StepRow

__all__ = ["Phase", "Profile", "Row", "StepRow", "profile_model", "profile_plan"]
