//! What is known of a request for the metrics and the logs, from its first byte to its end.
//!
//! It is opened by the poller when the first byte is there, filled in by whoever has the connection
//! and closed once, when the answer has left or is given up (observer.zig). Owner: the request's
//! exchange. GIL: not needed.

const std = @import("std");
const timing_module = @import("timing.zig");
const scanner = @import("scanner.zig");
const ReadError = @import("body.zig").ReadError;
const Reason = @import("reasons.zig").Reason;
const Phase = timing_module.Phase;

pub const Record = struct {
    timing: timing_module.Timing = .{},
    /// Counts the requests of this process; 0 when none is in progress.
    number: u64 = 0,
    /// Of the final answer; 0 as long as there is none.
    status: u16 = 0,
    /// Why the server itself answered.
    reason: ?Reason = null,
    /// The phase whose timeout ended the request, where `reason` does not say it.
    timed_out: ?Phase = null,
    /// Why the application could not read the body to its end.
    body_error: ?ReadError = null,
    /// The client took nothing of the answer, and made room for others.
    evicted: bool = false,
    /// The client left before it had the whole answer.
    client_gone: bool = false,
    /// The worker that runs it or ran it last.
    thread: ?u32 = null,
    /// All that the kernel took, heads included.
    bytes_sent: u64 = 0,
    /// Of these, heads.
    head_bytes_sent: u64 = 0,
    /// How long it had waited before it came here, as a trusted proxy says.
    waited_before_ns: u64 = 0,
    /// A trusted proxy's id, in the exchange's bytes.
    given_id: scanner.Span = .{},

    pub fn begin(self: *Record, now_ns: u64, number: u64) void {
        self.* = .{ .number = number };
        self.timing.begin(now_ns);
    }

    /// From the client's first proxy that tells to the application.
    pub fn waited_ns(self: *const Record) u64 {
        return self.waited_before_ns + self.timing.of(.queue) + self.timing.of(.gil);
    }

    /// It will not get the whole answer, if nobody has given it up before.
    pub fn note_client_gone(self: *Record) void {
        if (self.timed_out == null and !self.evicted) self.client_gone = true;
    }

    pub fn is_open(self: *const Record) bool {
        return self.number != 0;
    }
};
