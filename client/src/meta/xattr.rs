//! Calls about extended attributes. Names are complete: `user.x`.

use super::Meta;
use crate::Credentials;
use corefs_wire::control::meta::{GetXattrT, ListXattrT, RemoveXattrT, SetXattrT};
use corefs_wire::{InodeId, Result};

impl Meta {
    /// `NoSuchAttribute` when there is none.
    pub async fn get_xattr(&self, who: &Credentials, inode: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut request = GetXattrT::default();
        request.caller = self.looking(who);
        (request.inode, request.name) = (inode.0, name.to_vec());
        Ok(self.ask(inode.0, &request).await?.value)
    }

    pub async fn list_xattr(&self, who: &Credentials, inode: InodeId) -> Result<Vec<Vec<u8>>> {
        let mut request = ListXattrT::default();
        request.caller = self.looking(who);
        request.inode = inode.0;
        let reply = self.ask(inode.0, &request).await?;
        Ok(reply.names.into_iter().map(|name| name.name).collect())
    }

    /// `flags` as of setxattr(2): 1 CREATE, 2 REPLACE.
    pub async fn set_xattr(
        &self,
        who: &Credentials,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode);
        let mut request = SetXattrT::default();
        request.caller = caller;
        (request.inode, request.flags) = (inode.0, flags);
        (request.name, request.value) = (name.to_vec(), value.to_vec());
        self.carry_out(&sequence, inode.0, &request).await.map(drop)
    }

    pub async fn remove_xattr(&self, who: &Credentials, inode: InodeId, name: &[u8]) -> Result<()> {
        let (caller, sequence) = self.changing(who);
        sequence.of_inode(inode);
        let mut request = RemoveXattrT::default();
        request.caller = caller;
        (request.inode, request.name) = (inode.0, name.to_vec());
        self.carry_out(&sequence, inode.0, &request).await.map(drop)
    }
}
