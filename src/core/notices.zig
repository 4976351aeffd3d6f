//! What the operator has to hear of once, and cannot be told where it happens: the poller has no
//! GIL, and a line for each request would let a client fill the log.
//!
//! Any thread leaves a notice; the main thread takes them and writes them to the log. Locked.
//! GIL: not needed.

const std = @import("std");
const sys = @import("sys.zig");

pub const Kind = enum {
    /// Forwarded fields of a peer that is not trusted were taken out.
    forwarded_fields_stripped,
    /// A trusted peer that must begin with a PROXY header began with something else.
    proxy_header_missing,
    /// `limits.connections` is reached: idle connections make room for new ones.
    connections_full,
    /// The same for want of descriptors.
    descriptors_exhausted,
    /// `limits.buffer_memory` is reached.
    buffers_full,
    /// Clients that take nothing of their responses make room, the longest stalled first.
    stalled_for_connections,
    stalled_for_descriptors,
    stalled_for_buffers,
    stalled_for_kernel_memory,
    stalled_for_threads,
    /// The application has set a field of the connection's, which was left out.
    connection_dropped,
    keep_alive_dropped,
    proxy_connection_dropped,
};

pub const Notice = struct {
    kind: Kind,
    /// Whose doing it was.
    address: sys.Address,
};

pub const Notices = struct {
    mutex: std.Thread.Mutex = .{},
    /// Kinds ever left, as bits: so that leaving one again costs a look.
    left: std.atomic.Value(u32) = .init(0),
    waiting: std.EnumMap(Kind, sys.Address) = .{},

    /// Whether this is the first notice of its kind; somebody should come and take it then.
    pub fn leave(self: *Notices, kind: Kind, address: *const sys.Address) bool {
        const bit = @as(u32, 1) << @intFromEnum(kind);
        if (self.left.load(.monotonic) & bit != 0) return false;
        self.mutex.lock();
        defer self.mutex.unlock();
        if (self.left.fetchOr(bit, .monotonic) & bit != 0) return false;
        self.waiting.put(kind, address.*);
        return true;
    }

    pub fn take(self: *Notices) ?Notice {
        self.mutex.lock();
        defer self.mutex.unlock();
        for (std.enums.values(Kind)) |kind| {
            const address = self.waiting.fetchRemove(kind) orelse continue;
            return .{ .kind = kind, .address = address };
        }
        return null;
    }
};

const testing = std.testing;

test "a notice is taken once and left once" {
    var notices: Notices = .{};
    try testing.expect(notices.take() == null);
    const address = sys.ipv4_address(.{ 192, 0, 2, 7 }, 1);
    try testing.expect(notices.leave(.proxy_header_missing, &address));
    try testing.expect(!notices.leave(.proxy_header_missing, &sys.no_address));
    try testing.expect(notices.leave(.forwarded_fields_stripped, &sys.no_address));
    try testing.expectEqual(.forwarded_fields_stripped, notices.take().?.kind);
    const notice = notices.take().?;
    try testing.expectEqual(.proxy_header_missing, notice.kind);
    try testing.expectEqual(1, sys.address_port(&notice.address));
    try testing.expect(notices.take() == null);
    try testing.expect(!notices.leave(.proxy_header_missing, &address));
    try testing.expect(notices.take() == null);
}
