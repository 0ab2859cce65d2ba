"""A real Prometheus scrapes over TLS, with a password, and with a client certificate."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from tests.e2e.prometheus import Prometheus
from tests.support import ExporterProcess
from tests.web_configuration import NO_DATABASE, PASSWORD, TLS, Setting, hashed

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="there is no prometheus on this machine")


def scrape(setting: Setting, job: str, exporter: ExporterProcess, tls: dict[str, str], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "job_name": job,
        "scheme": "https",
        "static_configs": [{"targets": [exporter.address.removeprefix("https://")]}],
        "tls_config": {"ca_file": str(setting.folder / "ca.crt")} | tls,
        **more,
    }


def test_scrapes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    setting = Setting.in_folder(tmp_path)
    client, stranger = setting.certify("client", "prometheus@example.org"), setting.certify("x", "x", ca=trustme.CA())
    setting.write(
        tls_server_config=TLS
        | {
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "ca.crt",
            "client_allowed_sans": ["prometheus@example.org"],
        }
    )
    by_certificate = setting.file.rename(setting.folder / "by_certificate.yml")
    setting.write(tls_server_config=TLS, basic_auth_users={"prometheus": hashed(PASSWORD)})

    def files(given: dict[str, str]) -> dict[str, str]:
        return {"cert_file": given["--cert"], "key_file": given["--key"]}

    with (
        ExporterProcess(NO_DATABASE, "--web.config.file", str(setting.file)) as by_password,
        ExporterProcess(NO_DATABASE, "--web.config.file", str(by_certificate)) as certified,
    ):
        jobs = [
            scrape(setting, "password", by_password, {}, basic_auth={"username": "prometheus", "password": PASSWORD}),
            scrape(setting, "wrong", by_password, {}, basic_auth={"username": "prometheus", "password": "x"}),
            scrape(setting, "nobody", by_password, {}),
            scrape(setting, "certificate", certified, files(client)),
            scrape(setting, "stranger", certified, files(stranger)),
            scrape(setting, "uncertified", certified, {}),
        ]
        written: Path = tmp_path_factory.mktemp("prometheus") / "prometheus.yml"
        written.write_text(
            yaml.safe_dump({"global": {"scrape_interval": "300ms"}, "scrape_configs": jobs}), encoding="utf-8"
        )
        with Prometheus(written) as prometheus:
            prometheus.wait_for("count(up) == 6")
            assert prometheus.wait_for("count(sum_over_time(up[1m]) > 3) == 2")
            up = {dict(labels)["job"]: value for labels, value in prometheus.at("max_over_time(up[1m])").items()}
            assert up == {"password": 1, "certificate": 1, "wrong": 0, "nobody": 0, "stranger": 0, "uncertified": 0}
            errors = {
                target["labels"]["job"]: target["lastError"] for target in prometheus.ask("targets")["activeTargets"]
            }
            assert "401 Unauthorized" in errors["wrong"]
            assert "401 Unauthorized" in errors["nobody"]
            assert errors["stranger"]
            assert errors["uncertified"]
            # A password that has changed is asked for from then on.
            setting.write(tls_server_config=TLS, basic_auth_users={"prometheus": hashed("x")})
            prometheus.wait_for('up{job="wrong"} == 1 and on() up{job="password"} == 0')
