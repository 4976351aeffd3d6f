//! Whether the kernel's memory for TCP is short, for eviction.zig.
//!
//! Linux slows every connection of the host down once TCP's pages pass the second figure of
//! net.ipv4.tcp_mem, until they are below the first (tcp(7)). Only the initial network namespace
//! shows these figures. In a container, whose sockets count against its memory limit, the only
//! bound is the share of that limit which stalled clients may hold in the kernel. Owner: the
//! poller, at most once a second. GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");

pub const KernelMemory = struct {
    /// Past the second figure, and not below the first again.
    is_short: bool = false,

    /// How many bytes too many the kernel holds. `held` is what stalled clients have not
    /// acknowledged and `share` how much of it there may be; 0: no limit.
    pub fn excess(self: *KernelMemory, held: u64, share: u64) u64 {
        const own = if (share == 0) 0 else held -| share;
        return @max(own, self.excess_of_host());
    }

    fn excess_of_host(self: *KernelMemory) u64 {
        var storage: [2][1024]u8 = undefined;
        const sockstat = sys.read_text("/proc/net/sockstat", &storage[0]) orelse return 0;
        const limits = sys.read_text("/proc/sys/net/ipv4/tcp_mem", &storage[1]) orelse return 0;
        const pages = self.excess_pages(pages_in_use(sockstat) orelse return 0, limits);
        return pages * std.heap.pageSize();
    }

    fn excess_pages(self: *KernelMemory, in_use: u64, limits: []const u8) u64 {
        var words = std.mem.tokenizeAny(u8, limits, " \t\n");
        const low = std.fmt.parseInt(u64, words.next() orelse return 0, 10) catch return 0;
        const pressure = std.fmt.parseInt(u64, words.next() orelse return 0, 10) catch return 0;
        if (in_use > pressure) self.is_short = true;
        if (in_use <= low) self.is_short = false;
        return if (self.is_short) in_use - low else 0;
    }
};

/// "TCP: inuse 5 orphan 0 tw 3 alloc 7 mem 1": the last figure.
fn pages_in_use(sockstat: []const u8) ?u64 {
    var lines = std.mem.splitScalar(u8, sockstat, '\n');
    while (lines.next()) |line| {
        if (!std.mem.startsWith(u8, line, "TCP: ")) continue;
        const at = std.mem.indexOf(u8, line, " mem ") orelse return null;
        var words = std.mem.tokenizeAny(u8, line[at + " mem ".len ..], " \r");
        return std.fmt.parseInt(u64, words.next() orelse return null, 10) catch null;
    }
    return null;
}

const testing = std.testing;

test "kernel memory: short past the second figure of tcp_mem, until below the first" {
    const sockstat = "sockets: used 9\nTCP: inuse 5 orphan 0 tw 3 alloc 7 mem 321\nUDP: inuse 1\n";
    try testing.expectEqual(321, pages_in_use(sockstat).?);
    try testing.expectEqual(null, pages_in_use("TCP: inuse 5\n"));
    try testing.expectEqual(null, pages_in_use(""));
    var memory: KernelMemory = .{};
    const limits = "100\t200\t300\n";
    try testing.expectEqual(0, memory.excess_pages(200, limits));
    try testing.expectEqual(101, memory.excess_pages(201, limits));
    try testing.expectEqual(1, memory.excess_pages(101, limits));
    try testing.expectEqual(0, memory.excess_pages(100, limits));
    try testing.expectEqual(0, memory.excess_pages(150, limits));
    try testing.expectEqual(0, memory.excess_pages(900, "many\n"));
}

test "kernel memory: stalled clients hold no more than their share" {
    var memory: KernelMemory = .{};
    const own = memory.excess(1 << 40, 1 << 39);
    try testing.expect(own >= 1 << 39);
    // Unless the machine that runs this is short itself.
    const host = memory.excess_of_host();
    try testing.expectEqual(host, memory.excess(1000, 1000));
    try testing.expectEqual(host, memory.excess(1 << 40, 0));
}
