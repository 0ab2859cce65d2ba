"""Every target of the fuzzer by name."""

from tests.fuzz import dashboards, dsns, events, options
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (events.TARGET, dsns.TARGET, dashboards.TARGET, options.TARGET)
}
