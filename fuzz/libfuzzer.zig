//! What libFuzzer calls, for the target that the build chose. Zig's `-ffuzz` makes the counters and
//! the calls that report comparisons; the table of places has another form than LLVM's, and is
//! copied into that at the start.
//!
//! Data: the tables live as long as the process. Thread: one. GIL: not needed.

const std = @import("std");
const targets = @import("targets.zig");
const target = @field(targets, @import("fuzz_options").target);

/// Without a stack trace: its code would be most of what is instrumented. The replay of an input
/// in `zig build test` shows one.
pub const panic = std.debug.FullPanic(report);

fn report(message: []const u8, _: ?usize) noreturn {
    inline for (.{ "panic: ", "\n" }, 0..) |text, index| {
        _ = std.c.write(2, text, text.len);
        if (index == 0) _ = std.c.write(2, message.ptr, message.len);
    }
    std.c.abort();
}

const Counter = u8;
/// LLVM's entry of a table of places: an address and whether a function begins there.
const Place = extern struct { address: usize, flags: usize };

extern var __start___sancov_cntrs: Counter;
extern var __stop___sancov_cntrs: Counter;
extern const __start___sancov_pcs1: usize;
extern const __stop___sancov_pcs1: usize;
extern fn __sanitizer_cov_8bit_counters_init(start: *Counter, stop: *Counter) void;
extern fn __sanitizer_cov_pcs_init(start: *const Place, stop: *const Place) void;

fn counters() []Counter {
    const first: [*]Counter = @ptrCast(&__start___sancov_cntrs);
    return first[0 .. &__stop___sancov_cntrs - &__start___sancov_cntrs];
}

fn addresses() []const usize {
    const first: [*]const usize = @ptrCast(&__start___sancov_pcs1);
    return first[0 .. &__stop___sancov_pcs1 - &__start___sancov_pcs1];
}

/// Which places any input has reached, when FUZZ_COVERAGE names a file for the list.
var reached: []bool = &.{};

export fn LLVMFuzzerInitialize(_: *c_int, _: *[*][*:0]u8) c_int {
    const found = addresses();
    const places = std.heap.c_allocator.alloc(Place, found.len + 1) catch @panic("no memory");
    for (places[0..found.len], found) |*place, address| {
        place.* = .{ .address = address, .flags = 0 };
    }
    __sanitizer_cov_8bit_counters_init(&__start___sancov_cntrs, &__stop___sancov_cntrs);
    __sanitizer_cov_pcs_init(&places[0], &places[found.len]);
    if (std.c.getenv("FUZZ_COVERAGE") != null) {
        reached = std.heap.c_allocator.alloc(bool, found.len) catch @panic("no memory");
        @memset(reached, false);
        _ = atexit(write_coverage);
    }
    return 0;
}

export fn LLVMFuzzerTestOneInput(bytes: [*]const u8, len: usize) c_int {
    target.run(std.heap.c_allocator, bytes[0..len]);
    for (reached, counters()[0..reached.len]) |*seen, count| seen.* = seen.* or count > 0;
    return 0;
}

extern "c" fn atexit(function: *const fn () callconv(.c) void) c_int;
extern "c" fn fopen(path: [*:0]const u8, mode: [*:0]const u8) ?*anyopaque;
extern "c" fn fprintf(file: *anyopaque, format: [*:0]const u8, ...) c_int;
extern "c" fn fclose(file: *anyopaque) c_int;
extern const __executable_start: u8;

/// One line a place: 1 or 0, and its address in the file.
fn write_coverage() callconv(.c) void {
    const path = std.c.getenv("FUZZ_COVERAGE") orelse return;
    const file = fopen(path, "w") orelse return;
    for (reached, addresses()) |seen, address| {
        if (address <= 1) continue; // how LLVM writes the address of a block that is dead
        const offset = address - @intFromPtr(&__executable_start);
        _ = fprintf(file, "%d %zx\n", @as(c_int, @intFromBool(seen)), offset);
    }
    _ = fclose(file);
}
