from __future__ import annotations

from bson import ObjectId

from tensordb_data.jobs.run_name import job_of_run, run_of_job


def test_a_run_names_its_job() -> None:
    id = ObjectId()
    assert run_of_job(id) == f"job-{id}" and job_of_run(run_of_job(id)) == id
    for name in ("job-", "job-x", str(id), f"xjob-{id}", f"job-job-{id}", ""):
        assert job_of_run(name) is None, name
