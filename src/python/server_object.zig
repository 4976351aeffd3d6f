//! What the methods of `_core.Server` do: Python values to the core's and back.
//!
//! One server for a process; it lives until the process ends, since worker threads that are stuck
//! in the application may outlast every reference to the Python object. GIL held, but where a
//! function says that it waits.

const std = @import("std");
const builtin = @import("builtin");
const core = @import("core");
const capi = @import("capi.zig");
const application_module = @import("application.zig");
const Object = capi.Object;
const Options = core.server.Options;
const Server = core.server.Server;

const gpa = std.heap.c_allocator;

/// The one of this process.
var served: ?*Server = null;

pub fn create(
    options_dict: *Object,
    listener_list: *Object,
    callable: *Object,
    report: *Object,
) capi.Error!?*anyopaque {
    const options = try read_options(Options, options_dict);
    var sockets: [core.poller.listeners_max]core.poller.ListenerOptions = undefined;
    var listeners: [core.poller.listeners_max]application_module.Listener = undefined;
    const count = try read_listeners(listener_list, &sockets, &listeners);
    const bridge = application_module.Bridge.create(
        gpa,
        callable,
        report,
        listeners[0..count],
        &options,
    ) catch |err| return raise_start_error(err);
    const application = bridge.as_application();
    const server = Server.create(gpa, options, sockets[0..count], application) catch |err| {
        return raise_start_error(err);
    };
    served = server;
    return server;
}

pub fn raise_start_error(err: anyerror) capi.Error {
    switch (err) {
        error.Raised => {},
        error.OutOfMemory => _ = capi.PyErr_NoMemory(),
        error.BadProxySetting => return capi.raise(
            capi.PyExc_ValueError,
            "proxy_trusted or proxy_headers: not what the core understands",
        ),
        error.CannotOpen => return capi.raise(
            capi.PyExc_OSError,
            "the access log cannot be opened",
        ),
        else => return capi.raise(
            capi.PyExc_OSError,
            "the system refused what the server needs to start: a descriptor (ulimit -n), " ++
                "epoll or kqueue, or a thread (ulimit -u, ulimit -v)",
        ),
    }
    return error.Raised;
}

/// Every field of the options has an entry of its own name.
pub fn read_options(comptime T: type, dict: *Object) capi.Error!T {
    var options: T = .{};
    inline for (@typeInfo(T).@"struct".fields) |field| {
        const value = capi.PyDict_GetItemString(dict, field.name) orelse
            return capi.raise(capi.PyExc_ValueError, "option missing: " ++ field.name);
        @field(options, field.name) = switch (field.type) {
            []const u8 => try read_text(value),
            bool => try read_integer(u1, value, field.name) == 1,
            []const core.static.Options => try read_static(value),
            else => try read_integer(field.type, value, field.name),
        };
    }
    return options;
}

pub fn read_integer(comptime T: type, value: *Object, comptime name: []const u8) capi.Error!T {
    const number = capi.PyLong_AsLongLong(value);
    if (number == -1 and capi.PyErr_Occurred() != null) return error.Raised;
    return std.math.cast(T, number) orelse
        capi.raise(capi.PyExc_ValueError, "option out of range: " ++ name);
}

/// A copy that lives as long as the server.
fn read_text(value: *Object) capi.Error![]const u8 {
    var size: capi.ssize = 0;
    const text = capi.PyUnicode_AsUTF8AndSize(value, &size) orelse return error.Raised;
    return gpa.dupe(u8, text[0..@intCast(size)]) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
}

/// A list of tuples of route, directory, cache_control, index and fallthrough.
fn read_static(list: *Object) capi.Error![]const core.static.Options {
    const count: usize = @intCast(@max(0, capi.PyList_Size(list)));
    if (capi.PyErr_Occurred() != null) return error.Raised;
    const tables = gpa.alloc(core.static.Options, count) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
    for (tables, 0..) |*table, index| {
        const entry = capi.PyList_GetItem(list, @intCast(index)) orelse return error.Raised;
        const directory = try read_text(try static_item(entry, 1));
        table.* = .{
            .route = try read_text(try static_item(entry, 0)),
            .directory = gpa.dupeZ(u8, directory) catch {
                _ = capi.PyErr_NoMemory();
                return error.Raised;
            },
            .cache_control = try read_text(try static_item(entry, 2)),
            .index = try read_text(try static_item(entry, 3)),
            .fallthrough = try capi.is_true(try static_item(entry, 4)),
        };
        if (table.cache_control.len > core.static.option_bytes_max or
            table.index.len > core.static.option_bytes_max)
        {
            return capi.raise(capi.PyExc_ValueError, "a value of static is too long");
        }
    }
    return tables;
}

fn static_item(entry: *Object, index: capi.ssize) capi.Error!*Object {
    return capi.PyTuple_GetItem(entry, index) orelse error.Raised;
}

fn read_listeners(
    list: *Object,
    sockets: []core.poller.ListenerOptions,
    listeners: []application_module.Listener,
) capi.Error!usize {
    const count: usize = @intCast(@max(0, capi.PyList_Size(list)));
    if (capi.PyErr_Occurred() != null) return error.Raised;
    if (count > sockets.len) return capi.raise(capi.PyExc_ValueError, "too many listeners");
    for (sockets[0..count], listeners[0..count], 0..) |*socket, *listener, index| {
        const entry = capi.PyList_GetItem(list, @intCast(index)) orelse return error.Raised;
        const number = capi.PyTuple_GetItem(entry, 0) orelse return error.Raised;
        const name = capi.PyTuple_GetItem(entry, 1) orelse return error.Raised;
        const port = capi.PyTuple_GetItem(entry, 2) orelse return error.Raised;
        const is_shared = capi.PyTuple_GetItem(entry, 3) orelse return error.Raised;
        socket.* = .{
            .fd = try read_integer(core.sys.Fd, number, "listener"),
            .is_shared = is_shared == &capi._Py_TrueStruct,
        };
        listener.* = .{ .name = name, .port = port };
    }
    return count;
}

pub fn server_of(handle: ?*anyopaque) capi.Error!*Server {
    const pointer = handle orelse
        return capi.raise(capi.PyExc_RuntimeError, "the server was not initialised");
    if (core.forks.is_child()) return capi.raise(
        capi.PyExc_RuntimeError,
        "this process was forked from the server's and has no server",
    );
    return @ptrCast(@alignCast(pointer));
}

pub fn worker_count(handle: ?*anyopaque) capi.Error!u32 {
    const server = try server_of(handle);
    return server.worker_count();
}

pub fn run_worker(handle: ?*anyopaque, number: *Object) capi.Error!*Object {
    const server = try server_of(handle);
    const own_number = try read_integer(u32, number, "number");
    server.run_worker(own_number);
    return capi.none();
}

pub fn drain(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    server.drain();
    return capi.none();
}

pub fn announce_drain(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    server.announce_drain();
    return capi.none();
}

pub fn stop(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    server.stop();
    return capi.none();
}

/// For `signal.set_wakeup_fd`: a signal that comes just before `wait` is then not slept over.
pub fn wakeup_fd(handle: ?*anyopaque) capi.Error!i32 {
    const server = try server_of(handle);
    return server.outcome_pipe[1];
}

/// Waits without the GIL, until the server stops, a signal comes or the time is over (negative:
/// without end). Handlers of signals that came run before it returns.
pub fn wait(handle: ?*anyopaque, timeout: *Object) capi.Error!*Object {
    const server = try server_of(handle);
    const number = try read_integer(i64, timeout, "timeout_ms");
    const timeout_ms: ?u64 = if (number >= 0) @intCast(number) else null;
    const fd = server.outcome_pipe[0];
    const state = capi.PyEval_SaveThread();
    server.attended.set();
    core.sys.wait_readable_or_signal(fd, timeout_ms);
    // Python's C handler has written the number of a signal, also of one that broke the wait off.
    // /readyz fails at once, though Python may have to wait for the GIL to act on it.
    var numbers: [64]u8 = undefined;
    const count = core.sys.recv(fd, &numbers) catch 0;
    const is_stop = core.sys.names_stop_signal(numbers[0..count]);
    if (is_stop) server.health.signalled.store(true, .release);
    capi.PyEval_RestoreThread(state);
    const failed = capi.PyErr_CheckSignals() < 0;
    // If the handler was ours, it has announced the drain.
    server.health.signalled.store(false, .release);
    if (failed) return error.Raised;
    return capi.boolean(server.outcome.load(.acquire) != .serving);
}

/// Opens log files anew; any thread, soon after.
pub fn reopen_logs(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    server.log.reopen();
    return capi.none();
}

const log_definition = capi.one_method("log", log, "log(record, /)\n--\n\n" ++
    "Take a record for the error log, which is dropped and counted if nobody reads that.");

/// The function that takes a record for the error log; it knows the server by its address.
pub fn log_function(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    const address = try capi.owned(capi.PyLong_FromVoidPtr(server));
    defer capi.drop(address);
    return capi.owned(capi.PyCFunction_NewEx(&log_definition, address, null));
}

fn log(address: ?*Object, record: ?*Object) callconv(.c) ?*Object {
    return put_record(address.?, record.?) catch null;
}

fn put_record(address: *Object, record: *Object) capi.Error!*Object {
    // The thread that writes the log is the parent's.
    if (core.forks.is_child()) return capi.none();
    if (!capi.is_bytes(record)) return capi.raise(capi.PyExc_TypeError, "the record is bytes");
    const server = try server_of(capi.PyLong_AsVoidPtr(address));
    server.log.put_now(capi.bytes_of(record));
    return capi.none();
}

/// Writes out what is to be logged; no more is taken. Waits without the GIL, a second at the most.
pub fn close_logs(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    const state = capi.PyEval_SaveThread();
    const is_written = server.log.close(core.log_writer.close_ms);
    capi.PyEval_RestoreThread(state);
    return capi.boolean(is_written);
}

pub fn metrics_text(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    var writer: std.Io.Writer.Allocating = .init(gpa);
    defer writer.deinit();
    server.metrics.write(&writer.writer, .openmetrics_1_0, server.gauges()) catch {
        _ = capi.PyErr_NoMemory();
        return error.Raised;
    };
    return capi.latin1(writer.written());
}

pub fn status(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    const counts = server.counts();
    const dict = try capi.owned(capi.PyDict_New());
    errdefer capi.drop(dict);
    inline for (@typeInfo(core.server.Counts).@"struct".fields) |field| {
        const number: c_longlong = @intCast(@field(counts, field.name));
        const value = try capi.owned(capi.PyLong_FromLongLong(number));
        defer capi.drop(value);
        try capi.checked(capi.PyDict_SetItemString(dict, field.name, value));
    }
    return dict;
}

/// A notice that was left for the operator, as (kind, address); None when there is none.
pub fn take_notice(handle: ?*anyopaque) capi.Error!*Object {
    const server = try server_of(handle);
    const notice = server.notices.take() orelse return capi.none();
    var storage: [core.sys.address_text_bytes_max]u8 = undefined;
    const address = core.sys.address_text(&notice.address, &storage);
    const pair = try capi.owned(capi.PyTuple_New(2));
    errdefer capi.drop(pair);
    try capi.checked(capi.PyTuple_SetItem(pair, 0, try capi.latin1(@tagName(notice.kind))));
    try capi.checked(capi.PyTuple_SetItem(pair, 1, try capi.latin1(address)));
    return pair;
}

pub fn close_in_child() void {
    if (served) |server| server.close_in_child();
}

/// On a thread without Python: those that have one stand still once the interpreter is taken down.
pub fn end_process(after_ms: *Object, exit_status: *Object) capi.Error!*Object {
    const milliseconds = try read_integer(u32, after_ms, "after_ms");
    const code = try read_integer(u8, exit_status, "status");
    const thread = std.Thread.spawn(.{}, struct {
        fn end(wait_ms: u32, with: u8) noreturn {
            core.sys.sleep_ms(wait_ms);
            core.sys.exit_now(with);
        }
    }.end, .{ milliseconds, code }) catch return capi.none();
    thread.detach();
    return capi.none();
}

/// Once, before there are threads, which need it to end.
pub fn load_unwinder() capi.Error!*Object {
    core.sys.load_unwinder();
    return capi.none();
}

pub fn build_info() capi.Error!*Object {
    const dict = try capi.owned(capi.PyDict_New());
    errdefer capi.drop(dict);
    const target = @tagName(builtin.cpu.arch) ++ "-" ++ @tagName(builtin.os.tag) ++ "-" ++
        @tagName(builtin.abi);
    inline for (.{
        .{ "version", core.version },
        .{ "zig", builtin.zig_version_string },
        .{ "optimize", @tagName(builtin.mode) },
        .{ "target", target },
    }) |entry| {
        const value = try capi.latin1(entry[1]);
        defer capi.drop(value);
        try capi.checked(capi.PyDict_SetItemString(dict, entry[0], value));
    }
    return dict;
}
