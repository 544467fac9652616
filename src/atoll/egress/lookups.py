"""Answers DNS questions by policy: refuses, asks upstream, checks what comes back, remembers what it gave out."""

from __future__ import annotations

from collections.abc import Callable

from atoll.egress import dns
from atoll.egress.names import AnsweredNames
from atoll.egress.policy import EgressPolicy, ForbiddenNetworks, Verdict, parse_address
from atoll.egress.records import EgressRecord, Ledger
from atoll.egress.resolver import host_name_servers, resolve

_EMPTY_KINDS = frozenset({dns.TYPE_AAAA, dns.TYPE_HTTPS, dns.TYPE_SVCB})
"""There is no IPv6 inside; and HTTPS records would let a client hide the server's name (ECH) from the policy."""
_REFUSED_KINDS = frozenset({dns.TYPE_ANY, dns.TYPE_AXFR, dns.TYPE_IXFR})


class Lookups:
    """`names` learns every address that is given out."""

    def __init__(
        self,
        policy: Callable[[], EgressPolicy],
        ground: Callable[[], ForbiddenNetworks],
        names: AnsweredNames,
        ledger: Ledger,
        name_servers: tuple[str, ...] | None,
    ) -> None:
        self._policy = policy
        self._ground = ground
        self._names = names
        self._ledger = ledger
        self._name_servers = name_servers

    async def answer(self, query: bytes, record: EgressRecord, *, tcp: bool) -> bytes | None:
        """The answer for one question; None for what deserves none (not DNS at all)."""
        try:
            question = dns.parse_query(query)
        except dns.BadMessage:
            return dns.answer(query, None, dns.FORMERR) if len(query) >= 12 else None
        record.name = question.name
        record.bytes_out = len(query)
        policy = self._policy()
        if not policy.may_resolve(question.name) or question.kind in _REFUSED_KINDS:
            record.verdict = Verdict.DENIED_NAME
            self._ledger.add(record)
            return dns.answer(query, question, dns.REFUSED)
        if question.kind in _EMPTY_KINDS:
            return dns.answer(query, question, dns.NOERROR)
        answer = await resolve(self._servers(policy), query, question, tcp=tcp)
        if answer is None:
            record.verdict = Verdict.FAILED
            answer = dns.answer(query, question, dns.SERVFAIL)
        else:
            record.verdict = Verdict.ALLOWED
            answer = self._checked(query, question, answer, record)
        record.bytes_in = len(answer)
        self._ledger.add(record)
        return answer

    def _servers(self, policy: EgressPolicy) -> list[str]:
        """Those of a create call are judged like any other address; the host's own are the operator's choice."""
        if policy.dns_servers is not None:
            ground = self._ground()
            return [server for server in policy.dns_servers if not ground.forbids(parse_address(server))]
        return list(self._name_servers or host_name_servers())

    def _checked(self, query: bytes, question: dns.Question, answer: bytes, record: EgressRecord) -> bytes:
        """Refuses an answer that points inward (rebinding)."""
        found = dns.parse_answer(answer, question)
        ground = self._ground()
        if any(ground.forbids(address) for address in found.addresses):
            record.verdict = Verdict.DENIED_PRIVATE
            return dns.answer(query, question, dns.REFUSED)
        if found.addresses:
            record.address = str(found.addresses[0])
            self._names.learn(question.name, found.addresses, found.ttl_s)
        return answer
