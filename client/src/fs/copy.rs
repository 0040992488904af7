//! Whole files in and out, several pieces in flight, so that a copy runs at the disk's rate and not at a round trip's.

use super::Fs;
use crate::file::{CreateOptions, Data, File, OpenOptions};
use corefs_wire::Result;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Bytes of a piece.
const PIECE: usize = 1 << 20;
/// Pieces under way.
const PIECES: usize = 8;

type Piece<'a> = Pin<Box<dyn Future<Output = Result<Data>> + 'a>>;

impl Fs {
    /// Writes a whole file from `source`, several pieces in flight; bytes written. The executor waits for `source.read`
    /// and for nothing else. `progress` is told how many bytes were taken so far. The file is synced and closed.
    pub async fn put(
        &self,
        path: &[u8],
        options: CreateOptions,
        source: &mut dyn std::io::Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let file = self.create(path, CreateOptions { truncate: true, ..options }).await?;
        let copied = copy_in(&file, source, progress).await;
        // Closed in any case: an open session would keep the file's length unsettled.
        let closed = file.close().await;
        let bytes = copied?;
        closed.map(|()| bytes)
    }

    /// Reads a whole file into `sink` in order, several pieces in flight; bytes read. `progress` as in [`put`](Self::put).
    pub async fn get(
        &self,
        path: &[u8],
        sink: &mut dyn std::io::Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let file = self.open(path, OpenOptions::default()).await?;
        let copied = copy_out(&file, sink, progress).await;
        file.close().await?;
        copied
    }
}

async fn copy_in(file: &File, source: &mut dyn std::io::Read, progress: &mut dyn FnMut(u64)) -> Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let filled = fill(source, &mut piece)?;
        if filled == 0 {
            return Ok(offset);
        }
        file.write_at(offset, &piece[..filled]).await?;
        offset += filled as u64;
        progress(offset);
    }
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut dyn std::io::Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

async fn copy_out(file: &File, sink: &mut dyn std::io::Write, progress: &mut dyn FnMut(u64)) -> Result<u64> {
    let length = file.length();
    let (mut asked, mut done) = (0, 0);
    let mut pieces: VecDeque<(Piece<'_>, Option<Result<Data>>)> = VecDeque::new();
    loop {
        while asked < length && pieces.len() < PIECES {
            pieces.push_back((Box::pin(file.read_at(asked, PIECE)), None));
            asked += PIECE as u64;
        }
        if pieces.is_empty() {
            return Ok(done);
        }
        let data = next(&mut pieces).await?;
        sink.write_all(&data)?;
        done += data.len() as u64;
        progress(done);
    }
}

/// The oldest piece, when it has come; the others go on meanwhile.
async fn next(pieces: &mut VecDeque<(Piece<'_>, Option<Result<Data>>)>) -> Result<Data> {
    poll_fn(|context| {
        for (piece, outcome) in pieces.iter_mut().filter(|(_, outcome)| outcome.is_none()) {
            if let Poll::Ready(data) = piece.as_mut().poll(context) {
                *outcome = Some(data);
            }
        }
        match pieces.pop_front() {
            Some((_, Some(outcome))) => Poll::Ready(outcome),
            Some(first) => {
                pieces.push_front(first);
                Poll::Pending
            }
            None => Poll::Ready(Ok(Data::default())),
        }
    })
    .await
}
