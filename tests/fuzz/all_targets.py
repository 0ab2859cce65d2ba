"""Every target of the fuzzer by name."""

from tests.fuzz import dashboards, dsns, events, options, passwords, requests, web_configuration
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        events.TARGET,
        web_configuration.TARGET,
        dsns.TARGET,
        passwords.TARGET,
        dashboards.TARGET,
        requests.TARGET,
        options.TARGET,
    )
}
