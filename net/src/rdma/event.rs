//! What a device says unasked: of its ports' links, of queue pairs that failed, of its own end (ibv_get_async_event(3)).
//!
//! The descriptor belongs to the open device, and so to one executor, whose ring polls it. Nothing here blocks. Each event is acknowledged as soon as it has been
//! looked at: what it is about can't be destroyed before.

use super::device::Context;
use ibverbs_sys as sys;
use std::io::ErrorKind;

/// Something that has happened. A queue pair is known by its owner's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    PortUp(u8),
    PortDown(u8),
    /// Another address, or something else that peers are told of a port.
    PortChanged,
    QueuePair {
        owner: u64,
    },
    /// The completion queue, or all shared receives.
    Queues,
    /// It was taken out, or has failed for good.
    Gone,
    /// Nothing that matters here.
    Other,
}

impl Context {
    /// Readable when there is an [`event`](Self::event).
    pub fn events_fd(&self) -> i32 {
        // SAFETY: the context is open as long as this is.
        unsafe { (*self.raw()).async_fd }
    }

    /// The next event, if there is one. A device that can't be asked any more is gone.
    pub fn event(&self) -> Option<Event> {
        // SAFETY: all zeros is a valid event.
        let mut told: sys::ibv_async_event = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and the event of the type that is written; the descriptor doesn't block.
        if unsafe { (self.library.get_async_event)(self.raw(), &mut told) } != 0 {
            let error = std::io::Error::last_os_error();
            let later = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
            return (!later).then_some(Event::Gone);
        }
        let event = read(&told);
        // SAFETY: it was got just now, and once.
        unsafe { (self.library.ack_async_event)(&mut told) };
        Some(event)
    }
}

fn read(told: &sys::ibv_async_event) -> Event {
    // SAFETY: of events about ports this form of the union was written.
    let port = || unsafe { told.element.port_num } as u8;
    match told.event_type {
        sys::IBV_EVENT_PORT_ACTIVE => Event::PortUp(port()),
        sys::IBV_EVENT_PORT_ERR => Event::PortDown(port()),
        sys::IBV_EVENT_GID_CHANGE
        | sys::IBV_EVENT_LID_CHANGE
        | sys::IBV_EVENT_PKEY_CHANGE
        | sys::IBV_EVENT_SM_CHANGE
        | sys::IBV_EVENT_CLIENT_REREGISTER => Event::PortChanged,
        sys::IBV_EVENT_QP_FATAL | sys::IBV_EVENT_QP_REQ_ERR | sys::IBV_EVENT_QP_ACCESS_ERR => {
            // SAFETY: of such events this form was written, and the queue pair can't be destroyed before they are acknowledged. Its owner's name is
            // kept in the context that it was made with.
            Event::QueuePair { owner: unsafe { (*told.element.qp).qp_context } as u64 }
        }
        sys::IBV_EVENT_CQ_ERR | sys::IBV_EVENT_SRQ_ERR => Event::Queues,
        sys::IBV_EVENT_DEVICE_FATAL => Event::Gone,
        _ => Event::Other,
    }
}
