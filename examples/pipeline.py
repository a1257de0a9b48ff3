"""A step of an automated pipeline: prune a model, and let it pass only if it lost little.

    python examples/pipeline.py builtin:manuals-16l --ratio 0.25 --max-perplexity-ratio 1.3 --out pruned

Exit status 0: passed, the model is in OUT. 1: it lost too much, or the job failed. 2: the service could not be used.
Run again with the same arguments, it takes up the same job: the idempotency key is made from them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from elder_client.client import DEFAULT_SERVER, ElderClient
from elder_client.errors import ElderClientError, JobUnsuccessful

PASSED, REJECTED, UNUSABLE = 0, 1, 2


def optimise(elder: ElderClient, model: str, ratio: float, max_perplexity_ratio: float, out: Path) -> bool:
    """Prune, judge by the report, and download what passes."""
    job = elder.submit_job(model, ratio=ratio, idempotency_key=f"pipeline-{model}-{ratio}")
    print(f"{job.id} {job.urls.page}")
    elder.wait_for_job(job.id)  # raises JobFailed, JobCancelled or JobExpired

    measured = elder.report(job.id).evaluation.ratios["perplexity"]
    if measured > max_perplexity_ratio:
        print(f"rejected: perplexity grew {measured:.3f} times, {max_perplexity_ratio:g} is allowed")
        return False
    elder.download(job.id, out)  # verified; goes on where it was broken off
    print(f"passed: perplexity grew {measured:.3f} times; the model is in {out / 'model'}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Prune a model, and let it pass only if it lost little.")
    parser.add_argument("model")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--max-perplexity-ratio", type=float, default=1.3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--server", default=DEFAULT_SERVER)
    given = parser.parse_args()
    try:
        with ElderClient(given.server) as elder:
            passed = optimise(elder, given.model, given.ratio, given.max_perplexity_ratio, given.out)
    except JobUnsuccessful as error:
        print(f"rejected [{error.code}]: {error.message}")
        return REJECTED
    except ElderClientError as error:
        print(f"error [{error.code}]: {error.message}", file=sys.stderr)
        return UNUSABLE
    return PASSED if passed else REJECTED


if __name__ == "__main__":
    sys.exit(main())
