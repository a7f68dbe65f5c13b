"""Rows over `torch.distributed` (NCCL between GPUs, Gloo between CPUs), beside a link that works.

A `CollectiveLink` wraps a Unix socket or gRPC link, its *base*. Everything small goes over the
base, in order, as ever: handshake, pings, errors, headers. The rows of a frame go by a *group* when
there is one; the frame's head (a `Parcel`, over the base) says by which generation of the group,
and as which exchange. The other end gives a frame to its owner when head and rows are there, in the
order of the heads.

**Groups are small.** Each has two members, one rank and one shard, and moves rows by `send` and
`recv`. A collective over a rank and all its shards (`all_to_all_single`) would have every shard
wait for the slowest, has no place for calls that are hedged, sent again or sent alone, and is
slower with Gloo. A group has no world: it is made from the backend's class and a store, so that
any number come and go in a process (`cluster.transport.collective.pairs`, the only file that
touches names that `torch.distributed` does not promise).

**Generations.** The rank offers generation g once the shard has welcomed it; both build their end
on a thread of its own and try it; who is done says READY. An end uses the group when it is built
and has heard the other's READY. The store through which the members find each other is the base
link itself: whoever was not let in never learns where to connect.

**Dropping.** The first error, missed deadline or damaged row of an exchange ends the generation:
the end that notices says DROP with how many exchanges it has received, the other answers with the
same, and both send what was not received again, as `ParcelRows` over the base. So rows are kept
until they are acknowledged (by the next head of the other direction, or by ACK). New frames go
over the base meanwhile, and the rank offers generation g + 1 after a pause that grows while
generations keep failing. When the base is lost the link is, as every link: the dispatcher sends
the rows elsewhere.

**Time.** The receiver's clock runs from a head's arrival: rows that have not come by
`Limits.exchange_s` (and their size by `Limits.bytes_per_s`) are late. The sender has no clock:
its peer takes rows when its loop looks, and a compute loop may be busy for seconds. No wait is
left to a library's default.

**Not covered.** Rows go without encryption, also beside mutual TLS: the network between the
members has to be trusted, and a configuration with both is refused. Checksums cover rows on the
host; rows on a GPU are not checked.
"""
