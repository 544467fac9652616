"""Answers DNS questions by policy: refuses, asks upstream, checks what comes back, remembers what it gave out."""

from __future__ import annotations

from collections.abc import Callable

from atoll.egress import dns
from atoll.egress.names import AnsweredNames
from atoll.egress.policy import EgressPolicy, Verdict, parse_address
from atoll.egress.records import EgressRecord, Ledger
from atoll.egress.resolver import host_name_servers, resolve, search_domains
from atoll.model.addresses import ForbiddenNetworks

_EMPTY_KINDS = frozenset({dns.TYPE_AAAA, dns.TYPE_HTTPS, dns.TYPE_SVCB})
"""There is no IPv6 inside; and HTTPS records would let a client hide the server's name (ECH) from the policy."""
INNER_ZONES = ("local", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa", "localhost")
"""Where networks keep names of their own (RFC 6762 appendix G, RFC 8375, ICANN's `internal`)."""
_REFUSED_KINDS = frozenset({dns.TYPE_ANY, dns.TYPE_AXFR, dns.TYPE_IXFR})


class Lookups:
    """`names` learns every address that is given out."""

    def __init__(
        self,
        policy: Callable[[], EgressPolicy],
        forbidden: Callable[[], ForbiddenNetworks],
        names: AnsweredNames,
        ledger: Ledger,
        name_servers: tuple[str, ...] | None,
    ) -> None:
        self._policy = policy
        self._forbidden = forbidden
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
        if not policy.may_resolve(question.name) or question.kind in _REFUSED_KINDS or self._looks_inward(question):
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
            forbidden = self._forbidden()
            return [server for server in policy.dns_servers if not forbidden.forbids(parse_address(server))]
        return list(self._name_servers or host_name_servers())

    def _checked(self, query: bytes, question: dns.Question, answer: bytes, record: EgressRecord) -> bytes:
        """Refuses an answer that points inward (rebinding)."""
        found = dns.parse_answer(answer, question)
        forbidden = self._forbidden()
        if any(forbidden.forbids(address) for address in found.addresses):
            record.verdict = Verdict.DENIED_PRIVATE
            return dns.answer(query, question, dns.REFUSED)
        if found.addresses:
            record.address = str(found.addresses[0])
            self._names.learn(question.name, found.addresses, found.ttl_s)
        return found.cut_to(answer)

    def _looks_inward(self, question: dns.Question) -> bool:
        """Whether the answer would describe the operator's own network: names of its addresses, records of its zones.

        Addresses are not asked here: what comes back is checked by itself.
        """
        if question.kind == dns.TYPE_A:
            return False
        forbidden = self._forbidden()
        network = dns.reverse_network(question.name)
        if network is not None:
            return forbidden.touches(network)
        inner = INNER_ZONES if self._name_servers else (*INNER_ZONES, *search_domains())
        within = any(question.name == zone or question.name.endswith("." + zone) for zone in inner)
        return within and not forbidden.private_allowed
