//! Runs the core's tests, one after another, and says which was slow.
//!
//! Zig's own runner speaks with the build over stdin and stdout and waits for a test for as long as
//! it takes; here one that takes too long ends the run with its name, as does one that panics. The
//! watch over it is a thread of its own; all else is the main thread's. GIL: not needed.

const std = @import("std");
const builtin = @import("builtin");
const testing = std.testing;

pub const std_options: std.Options = .{ .logFn = log };
pub const panic = std.debug.FullPanic(panic_in_test);

/// Of one test. FAULT_SECONDS makes some tests longer (faults_test.zig).
const seconds_max = 120;
/// From here on a test is worth a line of its own.
const slow_seconds = 4;

var current_name: []const u8 = "";
var logged_errors: usize = 0;

/// Ends the process unless it is told in time that the test has ended.
const Watch = struct {
    ended: std.Thread.ResetEvent = .{},
    name: []const u8,

    fn run(self: *Watch) void {
        const text = std.posix.getenv("FAULT_SECONDS") orelse "0";
        const faults = std.fmt.parseInt(u64, text, 10) catch 0;
        const seconds = seconds_max + 4 * faults;
        self.ended.timedWait(seconds * std.time.ns_per_s) catch {
            std.debug.print("{s}: not over after {d} s\n", .{ self.name, seconds });
            std.process.abort();
        };
    }
};

pub fn main() !void {
    var failed: usize = 0;
    var skipped: usize = 0;
    const all = builtin.test_functions;
    var whole = try std.time.Timer.start();
    for (all) |one| {
        current_name = one.name;
        var timer = try std.time.Timer.start();
        run(one) catch |err| if (err == error.SkipZigTest) {
            skipped += 1;
        } else {
            failed += 1;
            std.debug.print("{s}: failed: {t}\n", .{ one.name, err });
        };
        const tenths = timer.read() / (std.time.ns_per_s / 10);
        if (tenths < slow_seconds * 10) continue;
        std.debug.print("{s}: {d}.{d} s\n", .{ one.name, tenths / 10, tenths % 10 });
    }
    const passed = all.len - failed - skipped;
    const seconds = whole.read() / std.time.ns_per_s;
    std.debug.print("{d} of {d} tests passed, {d} failed, {d} skipped, {d} s\n", .{
        passed, all.len, failed, skipped, seconds,
    });
    if (logged_errors > 0) std.debug.print("{d} errors were logged\n", .{logged_errors});
    if (failed > 0 or logged_errors > 0) std.process.exit(1);
}

fn run(one: std.builtin.TestFn) anyerror!void {
    // Else it tells of the errors of all the tests before.
    if (@errorReturnTrace()) |trace| trace.index = 0;
    testing.allocator_instance = .{};
    testing.log_level = .warn;
    var watch: Watch = .{ .name = one.name };
    const thread = try std.Thread.spawn(.{}, Watch.run, .{&watch});
    const result = one.func();
    watch.ended.set();
    thread.join();
    const has_leaked = testing.allocator_instance.deinit() == .leak;
    result catch |err| {
        if (err != error.SkipZigTest) {
            if (@errorReturnTrace()) |trace| std.debug.dumpStackTrace(trace.*);
        }
        return err;
    };
    if (has_leaked) return error.MemoryLeaked;
}

fn panic_in_test(message: []const u8, first_address: ?usize) noreturn {
    std.debug.print("{s}: panic\n", .{current_name});
    std.debug.defaultPanic(message, first_address);
}

fn log(
    comptime level: std.log.Level,
    comptime scope: @Type(.enum_literal),
    comptime format: []const u8,
    args: anytype,
) void {
    if (level == .err) logged_errors += 1;
    if (@intFromEnum(level) > @intFromEnum(testing.log_level)) return;
    std.debug.print("[" ++ @tagName(scope) ++ "] ({t}): " ++ format ++ "\n", .{level} ++ args);
}
