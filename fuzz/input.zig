//! What every fuzz target shares: an input's two bytes of settings, the pieces into which its bytes
//! are split, and the assertion that makes a broken promise a crash.
//!
//! Data: borrows the fuzzer's input for the call. Thread: one. GIL: not needed.

const std = @import("std");

/// Longer inputs say nothing that shorter ones do not.
pub const bytes_max = 8 * 1024;

pub const Input = struct {
    /// Chooses limits; what its bits mean is the target's.
    settings: u8,
    /// Chooses where the bytes are split, and sizes of small limits.
    seed: u8,
    /// What a peer sends.
    bytes: []const u8,

    /// Null when the input is too short to be one, or longer than is useful.
    pub fn of(input: []const u8) ?Input {
        if (input.len < 2 or input.len > 2 + bytes_max) return null;
        return .{ .settings = input[0], .seed = input[1], .bytes = input[2..] };
    }

    pub fn pieces(self: Input) Pieces {
        const longest: usize = switch (self.seed & 3) {
            0 => 1,
            1 => 3,
            2 => 40,
            else => 700,
        };
        return .{
            .end = self.bytes.len,
            // Parsing the bytes so far once a piece is quadratic in their number.
            .longest = @max(longest, self.bytes.len / 64),
            .prng = .init(self.seed),
        };
    }
};

/// Ends of growing prefixes; the last is the whole.
pub const Pieces = struct {
    end: usize,
    longest: usize,
    prng: std.Random.DefaultPrng,
    at: usize = 0,
    begun: bool = false,

    pub fn next(self: *Pieces) ?usize {
        if (self.begun and self.at == self.end) return null;
        self.begun = true;
        const step = 1 + self.prng.random().uintLessThan(usize, self.longest);
        self.at = @min(self.at + step, self.end);
        return self.at;
    }
};

/// What must hold for every input.
pub fn expect(holds: bool, comptime what: []const u8) void {
    if (!holds) @panic("broken promise: " ++ what);
}

pub fn expect_equal(a: []const u8, b: []const u8, comptime what: []const u8) void {
    expect(std.mem.eql(u8, a, b), what);
}

test "pieces grow to the whole, and an empty input is one piece" {
    for (0..256) |seed| {
        const given: Input = .{ .settings = 0, .seed = @intCast(seed), .bytes = "x" ** 300 };
        var pieces = given.pieces();
        var last: usize = 0;
        while (pieces.next()) |end| {
            try std.testing.expect(end > last);
            last = end;
        }
        try std.testing.expectEqual(300, last);
        const nothing: Input = .{ .settings = 0, .seed = @intCast(seed), .bytes = "" };
        var once = nothing.pieces();
        try std.testing.expectEqual(0, once.next().?);
        try std.testing.expectEqual(null, once.next());
    }
}
