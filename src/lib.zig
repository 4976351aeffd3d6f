//! Root of the extension module `serve_zig._core`: the few things that Python may call.
//!
//! Only this file uses pydust, and only at the edge: what a request passes through is in
//! src/python. Everything `pub` here becomes a Python name. Methods run with the GIL held, on the
//! thread that calls them. What they return is a new reference.

const py = @import("pydust");
const admin_object = @import("python/admin_object.zig");
const diagnosis = @import("python/diagnosis.zig");
const fork_hooks = @import("python/fork_hooks.zig");
const server_object = @import("python/server_object.zig");

const root = @This();

pub const Server = py.class(struct {
    pub const __doc__ =
        \\Server(options, listeners, application, report)
        \\
        \\An HTTP server for one WSGI application. `options` has an entry for each setting of the
        \\core (times in milliseconds, sizes in bytes); `listeners` are tuples of a descriptor,
        \\which the server takes over, SERVER_NAME, SERVER_PORT, and whether other processes accept
        \\from it too; `report` is called with (kind, message, exception, method, target, client,
        \\request_id) when the application fails.
    ;
    const Self = @This();

    handle: ?*anyopaque,

    pub fn __init__(self: *Self, args: struct {
        options: py.PyObject,
        listeners: py.PyObject,
        application: py.PyObject,
        report: py.PyObject,
    }) !void {
        self.handle = null;
        self.handle = try raised(server_object.create(
            @ptrCast(args.options.py),
            @ptrCast(args.listeners.py),
            @ptrCast(args.application.py),
            @ptrCast(args.report.py),
        ));
    }

    pub fn worker_count(self: *const Self) !u32 {
        return raised(server_object.worker_count(self.handle));
    }

    /// The life of the worker thread of this number; returns when the server has stopped.
    pub fn run_worker(self: *const Self, args: struct { number: py.PyObject }) !py.PyObject {
        return object(server_object.run_worker(self.handle, @ptrCast(args.number.py)));
    }

    pub fn drain(self: *const Self) !py.PyObject {
        return object(server_object.drain(self.handle));
    }

    /// A drain will come; /readyz fails from here on.
    pub fn announce_drain(self: *const Self) !py.PyObject {
        return object(server_object.announce_drain(self.handle));
    }

    pub fn stop(self: *const Self) !py.PyObject {
        return object(server_object.stop(self.handle));
    }

    /// A descriptor for signal.set_wakeup_fd, so that `wait` sees every signal.
    pub fn wakeup_fd(self: *const Self) !i32 {
        return raised(server_object.wakeup_fd(self.handle));
    }

    /// True when the server has stopped; False after a signal or when the time is over.
    pub fn wait(self: *const Self, args: struct { timeout_ms: py.PyObject }) !py.PyObject {
        return object(server_object.wait(self.handle, @ptrCast(args.timeout_ms.py)));
    }

    /// Something for the log, as (kind, address of a client), or None; `wait` returns for one.
    pub fn take_notice(self: *const Self) !py.PyObject {
        return object(server_object.take_notice(self.handle));
    }

    /// Opens log files anew, after they were moved away.
    pub fn reopen_logs(self: *const Self) !py.PyObject {
        return object(server_object.reopen_logs(self.handle));
    }

    /// A function that takes a record for the error log, line ends included, and never waits for
    /// the log's reader. Not a method, which would allocate to be called: memory may be short just
    /// then. Good for as long as the server is.
    pub fn log_function(self: *const Self) !py.PyObject {
        return object(server_object.log_function(self.handle));
    }

    /// Writes out what is to be logged, in a second at the most; whether all of it was written.
    pub fn close_logs(self: *const Self) !py.PyObject {
        return object(server_object.close_logs(self.handle));
    }

    /// All metrics in OpenMetrics' text format.
    pub fn metrics_text(self: *const Self) !py.PyObject {
        return object(server_object.metrics_text(self.handle));
    }

    pub fn status(self: *const Self) !py.PyObject {
        return object(server_object.status(self.handle));
    }

    /// The requests in flight.
    pub fn requests(self: *const Self) !py.PyObject {
        return object(diagnosis.requests(self.handle));
    }

    /// An application call that has passed its time limit, each once.
    pub fn take_overdue(self: *const Self) !py.PyObject {
        return object(diagnosis.take_overdue(self.handle));
    }

    /// Whether the worker of this number is still in this call.
    pub fn is_in_call(self: *const Self, args: struct {
        thread: py.PyObject,
        call: py.PyObject,
    }) !py.PyObject {
        return object(diagnosis.is_in_call(
            self.handle,
            @ptrCast(args.thread.py),
            @ptrCast(args.call.py),
        ));
    }

    /// Raises an exception in the worker of this number if it is still in this call.
    pub fn interrupt(self: *const Self, args: struct {
        thread: py.PyObject,
        call: py.PyObject,
        exception: py.PyObject,
    }) !py.PyObject {
        return object(diagnosis.interrupt(
            self.handle,
            @ptrCast(args.thread.py),
            @ptrCast(args.call.py),
            @ptrCast(args.exception.py),
        ));
    }
});

pub const Admin = py.class(struct {
    pub const __doc__ =
        \\Admin(options, listeners)
        \\
        \\The admin listener, on a thread without Python. `listeners` are descriptors, which it
        \\takes over.
    ;
    const Self = @This();

    handle: ?*anyopaque,

    pub fn __init__(self: *Self, args: struct {
        options: py.PyObject,
        listeners: py.PyObject,
    }) !void {
        self.handle = null;
        self.handle = try raised(admin_object.create(
            @ptrCast(args.options.py),
            @ptrCast(args.listeners.py),
        ));
    }

    /// Where the process is between its start and its end.
    pub fn stage(self: *const Self, args: struct { name: py.PyObject }) !py.PyObject {
        return object(admin_object.stage(self.handle, @ptrCast(args.name.py)));
    }

    /// From here on the answers are about this server.
    pub fn serve(self: *const Self, args: struct {
        server: *const Server.definition,
    }) !py.PyObject {
        return object(admin_object.serve(self.handle, args.server.handle));
    }

    /// The life of the helper thread: the name of something to do.
    pub fn wait(self: *const Self) !py.PyObject {
        return object(admin_object.wait(self.handle));
    }

    pub fn answer(self: *const Self, args: struct { text: py.PyObject }) !py.PyObject {
        return object(admin_object.answer(self.handle, @ptrCast(args.text.py)));
    }

    /// Makes `wait` return "stop".
    pub fn dismiss(self: *const Self) !py.PyObject {
        return object(admin_object.dismiss(self.handle));
    }

    /// Closes the listeners.
    pub fn stop(self: *const Self) !py.PyObject {
        return object(admin_object.stop(self.handle));
    }
});

/// For os.register_at_fork, as are the next two: waits until every descriptor of the core is where
/// a child finds it.
pub fn before_fork() !py.PyObject {
    return object(fork_hooks.before());
}

pub fn after_fork_in_parent() !py.PyObject {
    return object(fork_hooks.after_in_parent());
}

/// Closes the child's copies of the descriptors. What it has of the server does nothing from then
/// on; a handler that returns there ends the process.
pub fn after_fork_in_child() !py.PyObject {
    return object(fork_hooks.after_in_child());
}

/// Loads what glibc ends threads with, while there are memory and descriptors.
pub fn load_unwinder() !py.PyObject {
    return object(server_object.load_unwinder());
}

/// Ends the process with a status after so many milliseconds, whatever the interpreter is doing.
pub fn end_process(args: struct { after_ms: py.PyObject, status: py.PyObject }) !py.PyObject {
    return object(server_object.end_process(
        @ptrCast(args.after_ms.py),
        @ptrCast(args.status.py),
    ));
}

/// Version of this package, of Zig, and how the module was built.
pub fn build_info() !py.PyObject {
    return object(server_object.build_info());
}

fn raised(result: anytype) !@typeInfo(@TypeOf(result)).error_union.payload {
    return result catch py.PyError.PyRaised;
}

fn object(result: anytype) !py.PyObject {
    return .{ .py = @ptrCast(try raised(result)) };
}

comptime {
    py.rootmodule(root);
}
