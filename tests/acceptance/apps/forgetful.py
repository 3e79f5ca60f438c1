"""A dedup store that breaks its one promise: what is done may be done again."""

from __future__ import annotations

from worker.dedup.base import Answer, Answers, Batch, StoreOptions, Verdict
from worker.dedup.memory import MemoryStore


class Forgetful(MemoryStore):
    """Remembers nothing that is done."""

    @classmethod
    def open(cls, url: str, options: StoreOptions) -> MemoryStore:
        return super().open(f"memory://{url}", options)

    def apply(self, batch: Batch) -> Answers:
        answers = super().apply(batch)
        fresh = Verdict(Answer.FRESH, 1)
        claims = [fresh if v.answer is Answer.DUPLICATE else v for v in answers.claims]
        return answers._replace(claims=claims)
