//! Fuzz target: the framing of a request body. Never both framings, never a length that could be
//! read otherwise, and no order of field lines that changes the verdict.
//!
//! Settings: bit 0 HTTP/1.0. Each line of the bytes is a field value, "L…" of Content-Length and
//! "T…" of Transfer-Encoding. Data: borrows the input. Thread: one. GIL: not needed.

const std = @import("std");
const core = @import("core");
const given = @import("input.zig");
const reference = @import("reference.zig");
const framing = core.framing;

const expect = given.expect;
const values_max = 64;

const Values = struct {
    lengths: [values_max][]const u8 = undefined,
    length_count: usize = 0,
    codings: [values_max][]const u8 = undefined,
    coding_count: usize = 0,

    fn of(bytes: []const u8) Values {
        var self: Values = .{};
        var lines = std.mem.splitScalar(u8, bytes, '\n');
        while (lines.next()) |line| {
            if (line.len == 0) continue;
            // As the request head hands them over: no controls, no whitespace round them.
            const value = reference.trim(line[1..]);
            if (!reference.is_field_text(value)) continue;
            if (line[0] == 'L' and self.length_count < values_max) {
                self.lengths[self.length_count] = value;
                self.length_count += 1;
            }
            if (line[0] == 'T' and self.coding_count < values_max) {
                self.codings[self.coding_count] = value;
                self.coding_count += 1;
            }
        }
        return self;
    }
};

pub fn run(_: std.mem.Allocator, input: []const u8) void {
    const message = given.Input.of(input) orelse return;
    const version: framing.Version = if (message.settings & 1 != 0) .http_1_0 else .http_1_1;
    const values: Values = .of(message.bytes);
    const lengths = values.lengths[0..values.length_count];
    const codings = values.codings[0..values.coding_count];
    const verdict = framing.determine(facts_of(version, lengths, codings, .lengths_first));
    expect_same(verdict, framing.determine(facts_of(version, lengths, codings, .codings_first)));
    const length = reference.read_framing(version == .http_1_0, lengths, codings);
    if (verdict) |decided| {
        const expected = length orelse @panic("broken promise: ambiguous framing is refused");
        switch (decided) {
            .none => expect(expected == .none, "neither field, no body"),
            .chunked => expect(expected == .chunked, "the one coding"),
            .content_length => |bytes| {
                expect(expected == .bytes and expected.bytes == bytes, "the length sent");
                expect(bytes <= framing.content_length_max, "a length fits 63 bits");
            },
        }
    } else |err| {
        expect(length == null, "what is clear is accepted");
        expect_refusal(err, version, lengths, codings);
    }
}

const Order = enum { lengths_first, codings_first };

fn facts_of(
    version: framing.Version,
    lengths: []const []const u8,
    codings: []const []const u8,
    order: Order,
) framing.Facts {
    var facts: framing.Facts = .{ .version = version };
    if (order == .lengths_first) for (lengths) |value| facts.note_content_length(value);
    for (codings) |value| facts.note_transfer_encoding(value);
    if (order == .codings_first) for (lengths) |value| facts.note_content_length(value);
    return facts;
}

fn expect_same(a: framing.Error!framing.Framing, b: framing.Error!framing.Framing) void {
    const first = a catch |err| {
        _ = b catch |other| return expect(err == other, "the order of fields does not matter");
        @panic("broken promise: the order of fields does not matter");
    };
    const second = b catch @panic("broken promise: the order of fields does not matter");
    expect(std.meta.eql(first, second), "the order of fields does not matter");
}

/// Which error it is: 501 tells of a coding that is merely unknown, never of an attack.
fn expect_refusal(
    err: framing.Error,
    version: framing.Version,
    lengths: []const []const u8,
    codings: []const []const u8,
) void {
    switch (err) {
        error.BadContentLength => expect(lengths.len > 0, "a length was sent"),
        error.DuplicateContentLength => expect(lengths.len > 1, "lengths were sent"),
        error.ConflictingFraming => expect(lengths.len == 1 and codings.len > 0, "both were sent"),
        error.BadTransferEncoding => expect(codings.len > 0, "a coding was sent"),
        error.UnsupportedTransferCoding => {
            expect(lengths.len == 0, "501 is for a coding alone");
            expect(version == .http_1_1, "501 is for HTTP/1.1");
            for (codings) |value| {
                const first = std.mem.trimLeft(u8, value, " \t");
                expect(first.len > 0 and reference.is_tchar(first[0]), "a coding is a token");
            }
        },
    }
}
