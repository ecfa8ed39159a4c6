//! A blob as it comes, read on where it broke off.

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::session::Session;
use crate::content::Blob;
use crate::error::RegistryError;
use crate::progress::{Event, Tell};
use crate::retry::Attempts;

/// After so many bytes in one go an interruption is the first of its kind again.
const GOOD_WHILE: u64 = 1 << 20;

struct Reading<'s> {
    session: &'s Session<'s>,
    blob: &'s Blob,
    tell: Tell<'s>,
    attempts: Attempts,
    /// The answer under way, and how many of its bytes are known already.
    body: Option<(Incoming, u64)>,
    offset: u64,
    /// Bytes since the last interruption.
    run: u64,
}

impl Session<'_> {
    /// The bytes of a blob, which are not checked here.
    pub(crate) fn read<'s>(
        &'s self,
        blob: &'s Blob,
        attempts: Attempts,
        tell: Tell<'s>,
    ) -> BoxStream<'s, Result<Bytes, RegistryError>> {
        let reading = Reading { session: self, blob, tell, attempts, body: None, offset: 0, run: 0 };
        stream::try_unfold(
            reading,
            |mut reading| async move { Ok(reading.piece().await?.map(|piece| (piece, reading))) },
        )
        .boxed()
    }
}

impl Reading<'_> {
    async fn piece(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.offset < self.blob.size {
            let error = match self.try_piece().await {
                Ok(Some(piece)) => {
                    self.offset += piece.len() as u64;
                    self.run += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            self.body = None;
            if std::mem::take(&mut self.run) >= GOOD_WHILE {
                self.attempts.anew();
            }
            let Some(wait) = self.attempts.after(&error) else { return Err(error) };
            (self.tell)(Event::Waits { wait, error: &error });
            tokio::time::sleep(wait).await;
        }
        Ok(None)
    }

    async fn try_piece(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let session = self.session;
        if self.body.is_none() {
            let (body, begins) = session.open(&self.blob.digest, self.offset).await?;
            self.body = Some((body, self.offset - begins));
        }
        let Some((body, known)) = &mut self.body else { return Ok(None) };
        loop {
            let frame = tokio::time::timeout(session.patience, body.frame()).await;
            let Some(frame) = frame.map_err(|_| session.timed_out(session.patience))? else { return Ok(None) };
            let frame = frame.map_err(|source| RegistryError::Interrupted {
                host: session.image.registry().to_owned(),
                source: Box::new(source),
            })?;
            let Ok(mut piece) = frame.into_data() else { continue };
            let skipped = usize::try_from(*known).unwrap_or(usize::MAX).min(piece.len());
            *known -= skipped as u64;
            let piece = piece.split_off(skipped);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}
